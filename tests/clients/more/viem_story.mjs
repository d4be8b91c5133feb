// viem: node viem_story.mjs URL CONTRACTS.json
import { readFileSync } from "node:fs";
import { createPublicClient, createWalletClient, defineChain, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const [url, path] = process.argv.slice(2);
const { Token } = JSON.parse(readFileSync(path, "utf8"));
const chain = defineChain({ id: 2017, name: "coco", nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 }, rpcUrls: { default: { http: [url] } } });
const account = privateKeyToAccount("0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e");
const wallet = createWalletClient({ account, chain, transport: http(url) });
const reader = createPublicClient({ chain, transport: http(url), pollingInterval: 100 });

const deployed = await reader.waitForTransactionReceipt({ hash: await wallet.deployContract({ abi: Token.abi, bytecode: Token.bytecode, args: [10n ** 24n] }) });
const address = deployed.contractAddress;
const to = "0x00000000000000000000000000000000000000aa";
const sent = await reader.waitForTransactionReceipt({ hash: await wallet.writeContract({ address, abi: Token.abi, functionName: "transfer", args: [to, 9n] }) });
const balance = await reader.readContract({ address, abi: Token.abi, functionName: "balanceOf", args: [to] });
const logs = await reader.getContractEvents({ address, abi: Token.abi, eventName: "Transfer", args: { to }, fromBlock: 0n });
let reason = "";
try {
  await reader.readContract({ address, abi: Token.abi, functionName: "refuse" });
} catch (error) {
  reason = error.cause?.reason ?? error.message;
}
console.log(JSON.stringify({ status: sent.status, balance: balance.toString(), logs: logs.length, reason }));
