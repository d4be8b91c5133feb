//! Calls that change nothing: `eth_call`, gas estimation, access lists.

use std::time::{Duration, Instant};

use alloy_consensus::Header;
use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_primitives::{Address, B256, Bytes, U256};
use revm::ExecuteEvm;
use revm::context::TxEnv;
use revm::context::result::{EVMError, ExecutionResult, ResultAndState};
use revm::context_interface::either::Either;
use revm::context_interface::transaction::SignedAuthorization;
use revm::primitives::hardfork::SpecId;
use revm::primitives::{TxKind, eip7825};
use thiserror::Error;

use super::block::{OUT_OF_TIME, block_env, machine, machine_config};
use super::chain::ChainConfig;
use super::state::{CodeCache, State};
use super::veil::Veil;
use crate::store::{StoreError, Transaction};

/// Gas that one query may burn: bounds its time.
pub const QUERY_GAS_MAX: u64 = 50_000_000;
/// Time after which a query is ended, whatever gas it has left: ten times what it takes where nothing else runs.
pub const QUERY_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for which the least gas limit is sought; what works, and is at most a little more, is given after it.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(1);
/// Gas that a call hands on with value, which may be needed and not used.
const STIPEND: u64 = 2_300;

/// A message to execute.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Sender: proven by the caller's identity, never by the request.
    pub from: Address,
    /// Callee; `None` creates.
    pub to: Option<Address>,
    /// Gas limit.
    pub gas: Option<u64>,
    /// Price per gas; the balance then has to cover it.
    pub gas_price: Option<u128>,
    /// Value in wei.
    pub value: U256,
    /// Call data or init code.
    pub data: Bytes,
    /// Access list.
    pub access_list: Touched,
    /// Signed authorisations (EIP-7702).
    pub authorizations: Vec<SignedAuthorization>,
}

/// Accounts and their slots.
pub type Touched = Vec<(Address, Vec<B256>)>;

/// What a query gives.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Output and gas used.
    Success(Bytes, u64),
    /// Revert data and gas used.
    Revert(Bytes, u64),
    /// The machine stopped for this reason.
    Halt(String, u64),
    /// The message could not start.
    Refused(String),
}

/// Failures of the node, not of the message.
#[derive(Debug, Error)]
pub enum QueryError {
    /// The store refused, for example a version that is gone.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It took more than `QUERY_TIME_MAX`.
    #[error("the call takes longer than {} ms, however much gas it has", QUERY_TIME_MAX.as_millis())]
    TooLong,
}

/// Where a query runs: after the block of `header`.
pub struct Query<'a> {
    /// Rules.
    pub chain: &'a ChainConfig,
    /// Header of the block.
    pub header: &'a Header,
    /// Analysed code.
    pub cache: CodeCache,
    /// Whether whoever asks sees everything.
    pub sees_all: bool,
}

fn answer(result: &ExecutionResult) -> Answer {
    let gas = result.tx_gas_used();
    match result {
        ExecutionResult::Success { output, .. } => Answer::Success(output.data().clone(), gas),
        ExecutionResult::Revert { output, .. } => Answer::Revert(output.clone(), gas),
        ExecutionResult::Halt { reason, .. } => Answer::Halt(reason.to_string(), gas),
    }
}

impl Query<'_> {
    fn gas_max(&self) -> u64 {
        let cap = if self.chain.spec >= SpecId::OSAKA {
            eip7825::TX_GAS_LIMIT_CAP
        } else {
            QUERY_GAS_MAX
        };
        cap.min(self.header.gas_limit)
    }

    fn run(
        &self,
        transaction: &mut Transaction,
        message: &Message,
        gas_limit: u64,
        veil: Veil,
        until: Instant,
    ) -> Result<Result<ResultAndState, String>, QueryError> {
        if veil == Veil::Drawn && message.from.is_zero() && (!message.value.is_zero() || message.gas_price > Some(0)) {
            // Anybody may ask as address zero, and what it owns is nobody's to see.
            return Ok(Err("insufficient funds: address zero pays nothing".to_owned()));
        }
        let savepoint = transaction.savepoint();
        let state = State::new(transaction, &self.chain.place, self.cache.clone())?;
        let nonce = {
            // The nonce of the sender, so that a creation gets the address that it would get.
            let mut state = state;
            let nonce = state.account(&message.from)?.map_or(0, |account| account.nonce);
            drop(state);
            nonce
        };
        let state = State::new(transaction, &self.chain.place, self.cache.clone())?;
        let mut config = machine_config(self.chain);
        config.tx_chain_id_check = false;
        config.disable_nonce_check = true;
        let env = block_env(self.header, self.chain.spec);
        let basefee = u128::from(env.basefee);
        let gas_price = message.gas_price.unwrap_or(0);
        let mut env = env;
        if gas_price < basefee {
            // A query without a price is free: the sender of a read need not hold ether.
            env.basefee = 0;
        }
        let mut machine = machine(state, config, env, veil, Some(until));
        let result = machine.transact(TxEnv {
            tx_type: match (message.authorizations.is_empty(), message.access_list.is_empty()) {
                (false, _) => 4,
                (true, false) => 1,
                (true, true) => 0,
            },
            gas_priority_fee: (!message.authorizations.is_empty()).then_some(gas_price),
            authorization_list: message.authorizations.iter().cloned().map(Either::Left).collect(),
            caller: message.from,
            gas_limit,
            gas_price,
            kind: message.to.map_or(TxKind::Create, TxKind::Call),
            value: message.value,
            data: message.data.clone(),
            nonce,
            chain_id: None,
            access_list: AccessList(
                message
                    .access_list
                    .iter()
                    .map(|(address, storage_keys)| AccessListItem {
                        address: *address,
                        storage_keys: storage_keys.clone(),
                    })
                    .collect(),
            ),
            ..TxEnv::default()
        });
        drop(machine);
        transaction.roll_back(savepoint)?;
        match result {
            Ok(outcome) => Ok(Ok(outcome)),
            Err(EVMError::Database(error)) => Err(error.into()),
            Err(EVMError::Custom(reason)) if reason == OUT_OF_TIME => Err(QueryError::TooLong),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Whether the message succeeds with so much gas; running out of time is no success.
    fn fits(
        &self,
        transaction: &mut Transaction,
        message: &Message,
        gas: u64,
        veil: Veil,
        until: Instant,
    ) -> Result<bool, QueryError> {
        match self.run(transaction, message, gas, veil, until) {
            Ok(outcome) => Ok(outcome.is_ok_and(|outcome| outcome.result.is_success())),
            Err(QueryError::TooLong) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Execute and forget.
    pub fn call(&self, transaction: &mut Transaction, message: &Message) -> Result<Answer, QueryError> {
        let gas = message.gas.unwrap_or(u64::MAX).min(self.gas_max());
        Ok(
            match self.run(
                transaction,
                message,
                gas,
                self.chain.veil(self.sees_all),
                Instant::now() + QUERY_TIME_MAX,
            )? {
                Ok(outcome) => answer(&outcome.result),
                Err(reason) => Answer::Refused(reason),
            },
        )
    }

    /// A gas limit with which the message succeeds, as `Success(_, gas)`: the least one, as far as it can be found in
    /// `SEARCH_TIME_MAX`.
    pub fn estimate(&self, transaction: &mut Transaction, message: &Message) -> Result<Answer, QueryError> {
        let began = Instant::now();
        let until = began + QUERY_TIME_MAX;
        let mut high = message.gas.unwrap_or(u64::MAX).min(self.gas_max());
        // Whoever asks: what is sent later runs for its origin, and sees what that may see.
        let veil = self.chain.veil(false);
        let (first, spent) = match self.run(transaction, message, high, veil, until)? {
            Ok(outcome) => (answer(&outcome.result), outcome.result.gas().total_gas_spent()),
            Err(reason) => return Ok(Answer::Refused(reason)),
        };
        let Answer::Success(output, used) = first else {
            return Ok(first);
        };
        // Refunds, and what a call must keep for itself (1/64), can make it need more than it uses in the end.
        let mut low = used.saturating_sub(1);
        let enough = spent.saturating_add(STIPEND).saturating_mul(64) / 63 + 1;
        // Of what takes long, one more run is all that there is time for: the one that surely tells much.
        let quick = began.elapsed() < SEARCH_TIME_MAX / 8;
        for guess in [spent, enough].into_iter().skip(usize::from(!quick)) {
            if low < guess && guess < high {
                if self.fits(transaction, message, guess, veil, until)? {
                    high = guess;
                    break;
                }
                low = guess;
            }
        }
        while low + 1 < high && began.elapsed() < SEARCH_TIME_MAX {
            let middle = (low + (high - low) / 2)
                .min(low.saturating_mul(2))
                .clamp(low + 1, high - 1);
            if self.fits(transaction, message, middle, veil, until)? {
                high = middle;
            } else {
                low = middle;
            }
        }
        Ok(Answer::Success(output, high))
    }

    /// The accounts and slots that the message touches beyond those that are warm anyway.
    pub fn access_list(
        &self,
        transaction: &mut Transaction,
        message: &Message,
    ) -> Result<(Answer, Touched), QueryError> {
        let gas = message.gas.unwrap_or(u64::MAX).min(self.gas_max());
        let until = Instant::now() + QUERY_TIME_MAX;
        let outcome = match self.run(transaction, message, gas, self.chain.veil(self.sees_all), until)? {
            Ok(outcome) => outcome,
            Err(reason) => return Ok((Answer::Refused(reason), Vec::new())),
        };
        let mut touched = Vec::new();
        for (address, account) in &outcome.state {
            let mut slots: Vec<B256> = account
                .storage
                .keys()
                .map(|slot| B256::from(slot.to_be_bytes::<32>()))
                .collect();
            slots.sort_unstable();
            let warm = *address == message.from
                || Some(*address) == message.to
                || *address == self.header.beneficiary
                || is_precompile(address)
                || account.is_created();
            if !slots.is_empty() || !warm {
                touched.push((*address, slots));
            }
        }
        touched.sort_unstable();
        let mut with_list = message.clone();
        with_list.access_list.clone_from(&touched);
        let answer = self.call(transaction, &with_list)?;
        Ok((answer, touched))
    }
}

fn is_precompile(address: &Address) -> bool {
    let bytes = address.as_slice();
    let number = u16::from_be_bytes([bytes[18], bytes[19]]);
    bytes[..18].iter().all(|byte| *byte == 0) && (1..=0x100).contains(&number)
}
