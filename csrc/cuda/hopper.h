// What the kernels of this folder ask of the machine: barriers, copies of whole tiles, products by
// warpgroups. Here in PTX for sm_90a; tests/emulated_hopper.h offers the same names on a CPU, with
// every asynchronous operation done as late, or as early, as the contract allows.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#define DIVSE_DEVICE __device__ __forceinline__

namespace divse::hopper {

using Map = CUtensorMap;
using Half = __half;
using Bfloat16 = __nv_bfloat16;

// Counts arrivals, and bytes that copies still owe; its phases alternate in parity.
struct alignas(8) Barrier {
    std::uint64_t state;
};

DIVSE_DEVICE std::uint32_t address(const void* shared) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// ---- who and where -----------------------------------------------------------------------------

DIVSE_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// Of this block in its cluster of `cluster` blocks along x.
DIVSE_DEVICE int rank() {
    std::uint32_t value;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
    return static_cast<int>(value);
}

DIVSE_DEVICE int cluster_index() {
    std::uint32_t value;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(value));
    return static_cast<int>(value);
}

DIVSE_DEVICE int cluster_count() {
    std::uint32_t value;
    asm("mov.u32 %0, %%nclusterid.x;" : "=r"(value));
    return static_cast<int>(value);
}

template <int Registers>
DIVSE_DEVICE void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

template <int Registers>
DIVSE_DEVICE void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

// ---- barriers ----------------------------------------------------------------------------------

DIVSE_DEVICE void start(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(arrivals)
                 : "memory");
}

// Barriers that were started are seen by copies and by the other block.
DIVSE_DEVICE void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// All threads of both blocks. Threads of a warp must come together: after a branch that only some of
// them took, they meet first.
DIVSE_DEVICE void meet_cluster() {
    __syncwarp();
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" :::
            "memory");
}

// Arrive, and announce bytes that copies will deliver within this phase.
DIVSE_DEVICE void expect(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Arrive at the barrier of the same place in block `rank` of the cluster. Between blocks, barriers
// only order copies and products, which are not ordinary accesses: no fence for those is needed.
DIVSE_DEVICE void arrive(Barrier* barrier, int rank) {
    asm volatile(
        "{\n\t.reg .b32 there;\n\t"
        "mapa.shared::cluster.u32 there, %0, %1;\n\t"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(
            address(barrier)),
        "r"(rank)
        : "memory");
}

// Wait until the phase of this parity is over.
DIVSE_DEVICE void wait(Barrier* barrier, int parity) {
    asm volatile(
        "{\n\t.reg .pred over;\n\t"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n\t"
        "@over bra done;\n\t"
        "bra again;\n\t"
        "done:\n\t}" ::"r"(address(barrier)),
        "r"(parity)
        : "memory");
}

// Named barriers of two warpgroups: one waits for its turn, the other passes it.
constexpr int both_warpgroups = 256;

DIVSE_DEVICE void wait_for_turn(int warpgroup) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + warpgroup), "n"(both_warpgroups) : "memory");
}

DIVSE_DEVICE void pass_turn(int to_warpgroup) {
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + to_warpgroup), "n"(both_warpgroups) : "memory");
}

// ---- copies of boxes of a tensor to shared memory, which is swizzled by 128 bytes ----------------

DIVSE_DEVICE void prefetch(const Map* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

DIVSE_DEVICE void copy(void* to, const Map* map, Barrier* barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(address(to)),
        "l"(map), "r"(address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// To the same place of every block in `blocks`, a bit each; each one's own barrier is told.
DIVSE_DEVICE void copy_to_all(void* to, const Map* map, Barrier* barrier, int x, int y, int z,
                              int w, std::uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(address(to)),
        "l"(map), "r"(address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "h"(blocks)
        : "memory");
}

// ---- products ------------------------------------------------------------------------------------

// An operand in shared memory: rows of 128 swizzled bytes, groups of 8 rows `stride` bytes apart.
DIVSE_DEVICE std::uint64_t operand(const void* shared, int stride) {
    constexpr std::uint64_t swizzle_128 = std::uint64_t{1} << 62, unused = std::uint64_t{1} << 16;
    const std::uint64_t start = (address(shared) & 0x3ffff) >> 4;
    return swizzle_128 | (static_cast<std::uint64_t>(stride >> 4) << 32) | unused | start;
}

// Accumulators may be read, or were written, by ordinary instructions.
DIVSE_DEVICE void settle(float (&sums)[2][64]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sums[0][i]), "+f"(sums[1][i])::"memory");
}

DIVSE_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DIVSE_DEVICE void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// All but the last `Pending` committed groups are done.
template <int Pending>
DIVSE_DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

#define DIVSE_F8(i)                                                                            \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
        "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define DIVSE_MULTIPLY(type)                                                                     \
    asm volatile(                                                                                \
        "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %66, 0;\n\t"                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                             \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "               \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "       \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "       \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "      \
        "%64, %65, add, 1, 1, 0, 0;\n\t}"                                                        \
        : DIVSE_F8(0), DIVSE_F8(8), DIVSE_F8(16), DIVSE_F8(24), DIVSE_F8(32), DIVSE_F8(40),      \
          DIVSE_F8(48), DIVSE_F8(56)                                                             \
        : "l"(a), "l"(b), "r"(add))

// 64 rows of a times 128 rows of b over 16 dimensions. Register 4 j + 2 h + l of thread t of a
// warpgroup is row 16 (t / 32) + t % 32 / 4 + 8 h, column 8 j + 2 (t % 4) + l.
template <typename T>
DIVSE_DEVICE void multiply(float (&sums)[64], std::uint64_t a, std::uint64_t b, int add) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        DIVSE_MULTIPLY("bf16");
    } else {
        DIVSE_MULTIPLY("f16");
    }
}

#undef DIVSE_MULTIPLY
#undef DIVSE_F8

// ---- numbers -------------------------------------------------------------------------------------

DIVSE_DEVICE float exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

DIVSE_DEVICE float log2(float x) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

DIVSE_DEVICE int bits_of(float x) { return __float_as_int(x); }
DIVSE_DEVICE float from_bits(int bits) { return __int_as_float(bits); }

// The value of the thread of this warp whose number differs in the bits of `mask`.
DIVSE_DEVICE float exchange(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

}  // namespace divse::hopper
