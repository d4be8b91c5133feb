//! What a chain fixes in its genesis, and the accounts that the fork's system calls need.

use alloy_eips::{eip2935, eip4788, eip7002, eip7251};
use alloy_primitives::{Address, B256, Bytes, U256};
use revm::primitives::hardfork::SpecId;

use super::state::Place;
use super::veil::Veil;

/// Rules of one chain.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Fork, from block 0 on.
    pub spec: SpecId,
    /// Gas limit of every block.
    pub gas_limit: u64,
    /// Base fee of block 1 in wei, moving by EIP-1559; `None` is the policy `free`: always zero.
    pub base_fee: Option<u64>,
    /// Whether accounts of others are hidden from code.
    pub private: bool,
    /// Where its state is.
    pub place: Place,
}

impl ChainConfig {
    /// What is hidden from code, when it runs for somebody who sees everything, or not.
    #[must_use]
    pub fn veil(&self, sees_all: bool) -> Veil {
        match (self.private, sees_all) {
            (false, _) => Veil::Absent,
            (true, true) => Veil::Lifted,
            (true, false) => Veil::Drawn,
        }
    }
}

/// An account of the genesis.
#[derive(Clone, Debug, Default)]
pub struct GenesisAccount {
    /// Address.
    pub address: Address,
    /// Balance in wei.
    pub balance: U256,
    /// Nonce.
    pub nonce: u64,
    /// Code, or empty.
    pub code: Bytes,
    /// Storage.
    pub storage: Vec<(U256, B256)>,
}

/// The contracts that the fork expects to find, as their EIPs define them.
#[must_use]
pub fn predeployed(spec: SpecId) -> Vec<GenesisAccount> {
    let contract = |address: Address, code: &Bytes| GenesisAccount {
        address,
        nonce: 1,
        code: code.clone(),
        ..GenesisAccount::default()
    };
    let mut all = Vec::new();
    if spec >= SpecId::CANCUN {
        all.push(contract(eip4788::BEACON_ROOTS_ADDRESS, &eip4788::BEACON_ROOTS_CODE));
    }
    if spec >= SpecId::PRAGUE {
        all.push(contract(
            eip2935::HISTORY_STORAGE_ADDRESS,
            &eip2935::HISTORY_STORAGE_CODE,
        ));
        all.push(contract(
            eip7002::WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS,
            &eip7002::WITHDRAWAL_REQUEST_PREDEPLOY_CODE,
        ));
        all.push(contract(
            eip7251::CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS,
            &eip7251::CONSOLIDATION_REQUEST_PREDEPLOY_CODE,
        ));
    }
    all
}
