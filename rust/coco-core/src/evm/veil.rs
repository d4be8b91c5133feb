//! What code may learn of accounts that are not its own, on a chain whose policy is `private` (docs/confidentiality.md).
//!
//! * An account *is hidden* from a frame when it is a person's (it has no code, or only a delegation of EIP-7702) and is
//!   neither the frame's own nor the origin's. Address zero, which anybody may call as, is nobody's own.
//! * BALANCE, EXTCODESIZE, EXTCODECOPY and EXTCODEHASH of a hidden account answer as for one that does not exist.
//! * What something costs tells no more: value that goes to a hidden account costs what it costs to an empty one, and
//!   SSTORE costs what a change costs, whatever the slot held.
//!
//! Execution is recorded and never re-run, so the rule may depend on who asks. What may be seen changes with the asker;
//! prices do not, or an estimate would not hold.

use std::borrow::Cow;

use alloy_primitives::{Address, B256, Log, U256};
use revm::bytecode::opcode;
use revm::context_interface::cfg::GasParams;
use revm::context_interface::context::{SStoreResult, SelfDestructResult, StateLoad};
use revm::context_interface::host::LoadError;
use revm::context_interface::journaled_state::AccountInfoLoad;
use revm::handler::instructions::EthInstructions;
use revm::interpreter::instructions::{contract, host};
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::interpreter_types::InputsTr;
use revm::interpreter::{Host, Instruction, InstructionContext, InstructionExecResult, InstructionResult};
use revm::primitives::{StorageKey, StorageValue};
use revm::state::{AccountInfo, Bytecode};

use super::block::MachineContext;

/// What a machine hides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Veil {
    /// Nothing: the policy `transparent`, and the conformance suite.
    #[default]
    Absent,
    /// Nothing, at the prices of a chain that hides: an auditor's question.
    Lifted,
    /// Accounts of others.
    Drawn,
}

type Ictx<'c, 'a> = InstructionContext<'c, MachineContext<'a>, EthInterpreter>;

/// Replace the instructions that would tell.
pub fn draw<'a>(instructions: &mut EthInstructions<EthInterpreter, MachineContext<'a>>, veil: Veil) {
    if veil == Veil::Absent {
        return;
    }
    let table = instructions.instruction_table_mut();
    table[usize::from(opcode::SSTORE)] = Instruction::new(sstore);
    table[usize::from(opcode::CALL)] = Instruction::new(call);
    table[usize::from(opcode::SELFDESTRUCT)] = Instruction::new(selfdestruct);
    if veil == Veil::Drawn {
        table[usize::from(opcode::BALANCE)] = Instruction::new(balance);
        table[usize::from(opcode::EXTCODESIZE)] = Instruction::new(extcodesize);
        table[usize::from(opcode::EXTCODECOPY)] = Instruction::new(extcodecopy);
        table[usize::from(opcode::EXTCODEHASH)] = Instruction::new(extcodehash);
    }
}

/// An instruction of the machine, run on what its frame may see.
macro_rules! on_its_frame {
    ($($name:ident: $answers:expr, $instruction:expr;)*) => {
        $(fn $name(context: Ictx<'_, '_>) -> InstructionExecResult {
            let mut frame = Frame {
                own: context.interpreter.input.target_address(),
                machine: context.host,
                answers: $answers,
            };
            $instruction(InstructionContext {
                interpreter: context.interpreter,
                host: &mut frame,
            })
        })*
    };
}

on_its_frame! {
    balance: Answers::AsAbsent, host::balance;
    extcodesize: Answers::AsAbsent, host::extcodesize;
    extcodecopy: Answers::AsAbsent, host::extcodecopy;
    extcodehash: Answers::AsAbsent, host::extcodehash;
    call: Answers::PricedAsEmpty, contract::call::<{ opcode::CALL }, _, _>;
    selfdestruct: Answers::PricedAsEmpty, host::selfdestruct;
}

fn sstore(context: Ictx<'_, '_>) -> InstructionExecResult {
    host::sstore_with_gas_accounting(context, |context, _, load| {
        let changed = SStoreResult {
            original_value: U256::from(1),
            present_value: U256::from(1),
            new_value: U256::from(2),
        };
        let cost = context
            .host
            .gas_params()
            .sstore_dynamic_gas(true, &changed, load.is_cold);
        if context.interpreter.gas.record_regular_cost(cost) {
            Ok(())
        } else {
            Err(InstructionResult::OutOfGas)
        }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// A hidden account has nothing.
    AsAbsent,
    /// It has what it has, which runs as it is, but counts as empty where existence has a price.
    PricedAsEmpty,
}

/// The machine as one frame sees it.
struct Frame<'m, 'a> {
    machine: &'m mut MachineContext<'a>,
    own: Address,
    answers: Answers,
}

impl Frame<'_, '_> {
    fn is_own(&self, address: Address) -> bool {
        let origin = self.machine.tx.caller;
        address == self.own || (address == origin && !origin.is_zero())
    }
}

fn is_persons(account: &AccountInfo) -> bool {
    account
        .code
        .as_ref()
        .is_none_or(|code| code.is_empty() || code.is_eip7702())
}

macro_rules! as_the_machine {
    ($($name:ident(&self $(, $argument:ident: $kind:ty)*) -> $out:ty;)*) => {
        $(fn $name(&self $(, $argument: $kind)*) -> $out {
            self.machine.$name($($argument),*)
        })*
    };
}

impl Host for Frame<'_, '_> {
    as_the_machine! {
        basefee(&self) -> U256;
        blob_gasprice(&self) -> U256;
        gas_limit(&self) -> U256;
        difficulty(&self) -> U256;
        prevrandao(&self) -> Option<U256>;
        block_number(&self) -> U256;
        timestamp(&self) -> U256;
        beneficiary(&self) -> Address;
        slot_num(&self) -> U256;
        chain_id(&self) -> U256;
        effective_gas_price(&self) -> U256;
        caller(&self) -> Address;
        blob_hash(&self, number: usize) -> Option<U256>;
        max_initcode_size(&self) -> usize;
        gas_params(&self) -> &GasParams;
        is_amsterdam_eip8037_enabled(&self) -> bool;
    }

    fn block_hash(&mut self, number: u64) -> Option<B256> {
        self.machine.block_hash(number)
    }

    fn selfdestruct(
        &mut self,
        address: Address,
        target: Address,
        skip_cold_load: bool,
    ) -> Result<StateLoad<SelfDestructResult>, LoadError> {
        let mut done = self.machine.selfdestruct(address, target, skip_cold_load)?;
        if !self.is_own(target) {
            let target = self.machine.load_account_info_skip_cold_load(target, true, false)?;
            done.data.target_exists &= !is_persons(&target);
        }
        Ok(done)
    }

    fn log(&mut self, log: Log) {
        self.machine.log(log);
    }

    fn sstore_skip_cold_load(
        &mut self,
        address: Address,
        key: StorageKey,
        value: StorageValue,
        skip_cold_load: bool,
    ) -> Result<StateLoad<SStoreResult>, LoadError> {
        self.machine.sstore_skip_cold_load(address, key, value, skip_cold_load)
    }

    fn sload_skip_cold_load(
        &mut self,
        address: Address,
        key: StorageKey,
        skip_cold_load: bool,
    ) -> Result<StateLoad<StorageValue>, LoadError> {
        self.machine.sload_skip_cold_load(address, key, skip_cold_load)
    }

    fn tstore(&mut self, address: Address, key: StorageKey, value: StorageValue) {
        self.machine.tstore(address, key, value);
    }

    fn tload(&mut self, address: Address, key: StorageKey) -> StorageValue {
        self.machine.tload(address, key)
    }

    fn load_account_info_skip_cold_load(
        &mut self,
        address: Address,
        _load_code: bool,
        skip_cold_load: bool,
    ) -> Result<AccountInfoLoad<'_>, LoadError> {
        let (own, answers) = (self.is_own(address), self.answers);
        // With its code, which tells whose account it is.
        let mut load = self
            .machine
            .load_account_info_skip_cold_load(address, true, skip_cold_load)?;
        if own || !is_persons(&load.account) {
            return Ok(load);
        }
        match answers {
            Answers::AsAbsent => {
                load.account = Cow::Owned(AccountInfo::default().with_code(Bytecode::default()));
                load.is_empty = true;
            }
            // What a delegation names has to run, and whoever calls it sees that it does.
            Answers::PricedAsEmpty => load.is_empty |= load.account.code.as_ref().is_none_or(Bytecode::is_empty),
        }
        Ok(load)
    }
}
