#include <cstring>

#include "int8_kernel.h"

namespace divse {

#ifdef DIVSE_X86
const Int8Kernel& int8_kernel(const Kernel& exact) {
    if (!std::strcmp(exact.name, "baseline")) return baseline_int8();
    const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
    return vnni && std::strcmp(exact.name, "avx2") ? avx512_vnni() : avx2_int8();
}
#else
const Int8Kernel& int8_kernel(const Kernel&) { return baseline_int8(); }
#endif

}  // namespace divse
