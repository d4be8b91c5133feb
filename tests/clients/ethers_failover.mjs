// A program for one node, through a failover: node ethers_failover.mjs URL COUNT. Pays COUNT times, one after the other,
// and prints a line after each; whatever is documented as worth trying again is tried again.
import { JsonRpcProvider, Wallet, keccak256 } from "ethers";

const [url, count] = process.argv.slice(2);
const provider = new JsonRpcProvider(url, undefined, { cacheTimeout: -1 });
provider.pollingInterval = 100;
const wallet = new Wallet("0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a", provider);
const to = Wallet.createRandom().address;

const again = (error) => {
  const text = `${error.error?.code} ${error.info?.error?.code} ${error.message}`;
  return /-32005|503|502|ECONNRESET|socket hang up/.test(text);
};
const persist = async (work) => {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!again(error)) throw error;
      await new Promise((done) => setTimeout(done, 200));
    }
  }
};

const first = await persist(() => wallet.getNonce("latest"));
for (let number = 0; number < Number(count); number += 1) {
  // One signed transaction, sent again as it is until its receipt is there: it cannot be paid twice.
  const fields = { to, value: 1n, nonce: first + number, gasLimit: 21000n, maxFeePerGas: 0n, maxPriorityFeePerGas: 0n };
  const chainId = (await persist(() => provider.getNetwork())).chainId;
  const signed = await wallet.signTransaction({ ...fields, chainId, type: 2 });
  const known = (error) => /already known|nonce too low|nonce has already been used/.test(error.message);
  await persist(async () => {
    try {
      await provider.broadcastTransaction(signed);
    } catch (error) {
      if (!known(error)) throw error;
    }
  });
  let receipt = null;
  while (receipt === null) {
    receipt = await persist(() => provider.getTransactionReceipt(keccak256(signed)));
    if (receipt === null) await new Promise((done) => setTimeout(done, 50));
  }
  if (receipt.status !== 1) throw new Error("a payment failed");
  console.log(number);
}
const balance = await persist(() => provider.getBalance(to));
console.log(`balance ${balance}`);
process.exit(0);
