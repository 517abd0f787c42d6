// Which instruction sets were compiled, which this CPU can run, and which one is active.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace softlane {

// Best first.
std::vector<std::string> isas_compiled();
std::vector<std::string> isas_usable();

// The active table. The first call chooses: SOFTLANE_ISA if it is set, else the best usable set.
// Throws std::runtime_error if SOFTLANE_ISA names a set that is unknown or not usable.
const KernelTable& active_table();

// Makes another set the active one. Throws std::invalid_argument if it is not usable.
void set_active(const std::string& name);

}  // namespace softlane
