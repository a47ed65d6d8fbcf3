// The exact kernels for the registers of avx2.h.
#include "avx2.h"
#include "instruction_set.h"

namespace divse {

const Kernel& avx2_kernel() {
    static constexpr Kernel kernel = kernel_of<Avx2>("avx2");
    return kernel;
}

}  // namespace divse
