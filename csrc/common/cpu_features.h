// Which compiled version of a kernel runs: chosen at run time, so that one binary fits all machines.
#pragma once

#include <string>
#include <vector>

namespace predet {

enum class InstructionSet : int { baseline = 0, avx2 = 1, avx512 = 2 };

// What was compiled and this processor can run, slowest first.
const std::vector<InstructionSet>& available_instruction_sets();

// The fastest of them, unless a test has chosen another.
InstructionSet instruction_set();
void use_instruction_set(InstructionSet chosen);

std::string name_of(InstructionSet set);

}  // namespace predet
