// The exact kernels for the registers of avx512.h.
#include "avx512.h"
#include "instruction_set.h"

namespace divse {

const Kernel& avx512_kernel() {
    static constexpr Kernel kernel = kernel_of<Avx512>("avx512");
    return kernel;
}

}  // namespace divse
