#pragma once

#include <string>
#include <vector>

#include "kernel.h"

namespace divse {

// The kernels that this CPU (and operating system) can run, best first.
const std::vector<const Kernel*>& usable_kernels();

// The kernel of that name, or the best for "auto"; null if there is none.
const Kernel* find_kernel(const std::string& name);

}  // namespace divse
