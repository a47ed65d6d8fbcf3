// The exact kernels for the registers of baseline.h.
#include "baseline.h"
#include "instruction_set.h"

namespace divse {

const Kernel& baseline_kernel() {
    static constexpr Kernel kernel = kernel_of<Baseline>("baseline");
    return kernel;
}

}  // namespace divse
