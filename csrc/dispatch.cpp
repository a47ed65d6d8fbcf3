#include "dispatch.h"

#ifdef DIVSE_X86
#include <cpuid.h>
#endif

namespace divse {

namespace {

#ifdef DIVSE_X86
// Clang's __builtin_cpu_supports does not know "f16c".
bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

std::vector<const Kernel*> detect() {
    std::vector<const Kernel*> kernels;
#ifdef DIVSE_X86
    __builtin_cpu_init();  // asks cpuid, and xgetbv whether the system saves the registers
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      has_f16c();
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        kernels.push_back(&avx512_kernel());
    }
    if (avx2) kernels.push_back(&avx2_kernel());
#endif
    kernels.push_back(&baseline_kernel());
    return kernels;
}

}  // namespace

const std::vector<const Kernel*>& usable_kernels() {
    static const std::vector<const Kernel*> kernels = detect();
    return kernels;
}

const Kernel* find_kernel(const std::string& name) {
    for (const Kernel* kernel : usable_kernels()) {
        if (name == "auto" || name == kernel->name) return kernel;
    }
    return nullptr;
}

}  // namespace divse
