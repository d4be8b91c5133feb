// ethers, unmodified, against a URL: node ethers_story.mjs URL CONTRACTS.json. Prints one JSON line of what it saw.
import { readFileSync } from "node:fs";
import { Contract, ContractFactory, JsonRpcProvider, Wallet } from "ethers";

const [url, path] = process.argv.slice(2);
const { Token } = JSON.parse(readFileSync(path, "utf8"));
// ethers caches a nonce for 250 ms; blocks come faster than that here, as on every fast chain (docs/ethereum.md).
const provider = new JsonRpcProvider(url, undefined, { cacheTimeout: -1 });
provider.pollingInterval = 100;
const wallet = new Wallet("0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a", provider);
const seen = {};

const factory = new ContractFactory(Token.abi, Token.bytecode, wallet);
const token = await factory.deploy(10n ** 24n);
await token.waitForDeployment();

const to = Wallet.createRandom().address;
const sent = await token.transfer(to, 42n);
const receipt = await sent.wait();
seen.hashMatches = receipt.hash === sent.hash;
seen.balance = (await token.balanceOf(to)).toString();
seen.events = (await token.queryFilter(token.filters.Transfer(wallet.address, to))).length;

try {
  await token.refuse();
} catch (error) {
  seen.reason = error.reason;
}
try {
  await token.limited(5000n);
} catch (error) {
  seen.custom = error.revert?.name;
}
seen.types = [];
for (const overrides of [{ type: 0 }, { type: 1, accessList: [] }, { type: 2 }]) {
  const one = await (await wallet.sendTransaction({ to, value: 1n, ...overrides })).wait();
  seen.types.push(one.type);
}
const network = await provider.getNetwork();
const auth = await wallet.authorize({ address: to, nonce: (await wallet.getNonce()) + 1, chainId: network.chainId });
const four = await (await wallet.sendTransaction({ type: 4, to, value: 1n, authorizationList: [auth] })).wait();
seen.types.push(four.type);

// Many at once: ethers sends them as JSON-RPC batches.
const nonce = await wallet.getNonce();
const many = await Promise.all(
  Array.from({ length: 20 }, (_, index) => wallet.sendTransaction({ to, value: 1n, nonce: nonce + index, gasLimit: 21000n })),
);
const receipts = await Promise.all(many.map((one) => one.wait()));
seen.many = receipts.filter((one) => one.status === 1).length;
seen.estimate = (await new Contract(await token.getAddress(), Token.abi, wallet).transfer.estimateGas(to, 1n)) > 21000n;
console.log(JSON.stringify(seen));
provider.destroy();
