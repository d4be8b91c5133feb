// Command checker says of each history of registers whether it is linearizable.
//
//	checker HISTORY...
//
// A history is a file of JSON lines: {"client", "write", "key", "value", "call", "return"}, times in nanoseconds; a
// write whose fate nobody knows has no "return". Every key begins as 0. It exits with 1 when any history is refused.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

// patience is the longest time for one history; a history that takes longer is undecided, and that is a failure.
const patience = 5 * time.Minute

type line struct {
	Client int    `json:"client"`
	Write  bool   `json:"write"`
	Key    string `json:"key"`
	Value  int    `json:"value"`
	Call   int64  `json:"call"`
	Return *int64 `json:"return"`
}

type input struct {
	write bool
	key   string
	value int
}

// registers are integers by key; each key is checked by itself.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, operation := range history {
			key := operation.Input.(input).key
			byKey[key] = append(byKey[key], operation)
		}
		parts := make([][]porcupine.Operation, 0, len(byKey))
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return 0 },
	Step: func(state, asked, answer any) (bool, any) {
		operation := asked.(input)
		if operation.write {
			return true, operation.value
		}
		return answer.(int) == state.(int), state
	},
	Equal: func(one, other any) bool { return one == other },
}

func read(path string) ([]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var history []porcupine.Operation
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var one line
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		end := int64(math.MaxInt64)
		if one.Return != nil {
			end = *one.Return
		}
		history = append(history, porcupine.Operation{
			ClientId: one.Client,
			Input:    input{one.Write, one.Key, one.Value},
			Call:     one.Call,
			Output:   one.Value,
			Return:   end,
		})
	}
	return history, lines.Err()
}

func main() {
	refused := 0
	for _, path := range os.Args[1:] {
		history, err := read(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		result := porcupine.CheckOperationsTimeout(registers, history, patience)
		fmt.Printf("%s: %d operations: %s\n", path, len(history), result)
		if result != porcupine.Ok {
			refused++
		}
	}
	if refused > 0 {
		os.Exit(1)
	}
}
