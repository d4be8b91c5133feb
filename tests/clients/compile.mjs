// Compile the contracts with solc's JavaScript build: node compile.mjs > contracts.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const solc = createRequire(import.meta.url)("solc");
const input = {
  language: "Solidity",
  sources: { "Token.sol": { content: readFileSync(join(here, "contracts/Token.sol"), "utf8") } },
  settings: {
    evmVersion: "prague",
    optimizer: { enabled: true, runs: 200 },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
  },
};
const read = (path) => ({ contents: readFileSync(join(here, "node_modules", path), "utf8") });
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: read }));
const failed = (output.errors ?? []).filter((one) => one.severity === "error");
if (failed.length > 0) {
  console.error(failed.map((one) => one.formattedMessage).join("\n"));
  process.exit(1);
}
const contracts = {};
for (const [name, one] of Object.entries(output.contracts["Token.sol"])) {
  contracts[name] = { abi: one.abi, bytecode: "0x" + one.evm.bytecode.object };
}
console.log(JSON.stringify(contracts));
