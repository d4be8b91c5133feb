// Hardhat with a key of its own: COCO_URL=… CONTRACTS=… hardhat run hardhat_story.cjs --no-compile --network coco
const { readFileSync } = require("node:fs");
const { network } = require("hardhat");

async function main() {
  const { Token } = JSON.parse(readFileSync(process.env.CONTRACTS, "utf8"));
  const call = (method, params) => network.provider.request({ method, params });
  const [from] = await call("eth_accounts", []);
  const data = Token.bytecode + (10n ** 24n).toString(16).padStart(64, "0");
  const hash = await call("eth_sendTransaction", [{ from, data }]);
  let receipt = null;
  for (let i = 0; i < 200 && receipt === null; i++) {
    await new Promise((done) => setTimeout(done, 50));
    receipt = await call("eth_getTransactionReceipt", [hash]);
  }
  let reverted = "";
  try {
    await call("eth_call", [{ to: receipt.contractAddress, data: "0x82d5bd29" }, "latest"]);
  } catch (error) {
    reverted = error.message;
  }
  console.log(JSON.stringify({ status: receipt.status, to: receipt.contractAddress !== null, reverted: reverted.includes("revert") }));
}

main().catch((error) => { console.error(error); process.exit(1); });
