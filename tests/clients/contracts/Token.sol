// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// A token whose whole supply belongs to its creator; the tests and the benchmark use it.
contract Token is ERC20 {
    error TooMuch(uint256 wanted, uint256 allowed);

    constructor(uint256 supply) ERC20("Coco Test Token", "CTT") {
        _mint(msg.sender, supply);
    }

    /// Reverts with a custom error above 1000.
    function limited(uint256 amount) external pure returns (uint256) {
        if (amount > 1000) revert TooMuch(amount, 1000);
        return amount;
    }

    /// Reverts with a reason.
    function refuse() external pure {
        revert("not today");
    }

    /// The account that a read is made as.
    function whoAmI() external view returns (address) {
        return msg.sender;
    }
}

/// Swaps two tokens at a fixed rate: the exchange of the mixed workload.
contract Exchange {
    ERC20 public immutable left;
    ERC20 public immutable right;

    constructor(ERC20 left_, ERC20 right_) {
        left = left_;
        right = right_;
    }

    function swap(uint256 amount) external {
        require(left.transferFrom(msg.sender, address(this), amount), "left");
        require(right.transfer(msg.sender, amount), "right");
    }
}
