module.exports = {
  solidity: "0.8.24",
  networks: {
    coco: {
      url: process.env.COCO_URL ?? "http://127.0.0.1:8545",
      accounts: ["0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba"],
    },
  },
};
