// The kernels of scores.h for every kind of sets they serve, and their launch.
#include "launch.h"
#include "hopper.h"
#include "scores.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cmath>
#include <stdexcept>
#include <string>

namespace divse::hopper {
namespace {

template <typename T, int Size, int Factors>
__global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(threads, 1)
    smooth_chamfer(const __grid_constant__ Map rows, const __grid_constant__ Map columns,
                   const __grid_constant__ Work work) {
    extern __shared__ char shared[];
    run<T, Size, Factors>(&rows, &columns, work, shared);
}

void check(cudaError_t status, const char* doing) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorString(status));
    }
}

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result),
          "looking for cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) {
        throw std::runtime_error("the driver has no cuTensorMapEncodeTiled: it needs CUDA 12");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

Map encode(const void* values, bool half, const Shape& shape) {
    static const auto encode_tiled = encoder();
    Map map{};
    const std::uint32_t steps[4] = {1, 1, 1, 1};
    const CUresult result = encode_tiled(
        &map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        static_cast<std::uint32_t>(shape.rank), const_cast<void*>(values), shape.sizes,
        shape.strides, shape.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        throw std::runtime_error("cuTensorMapEncodeTiled refused the sets with error " +
                                 std::to_string(static_cast<int>(result)));
    }
    return map;
}

template <typename T, int Size, int Factors>
void launch(const Launch& to, const Map& rows, const Map& columns, const Work& work) {
    const auto kernel = smooth_chamfer<T, Size, Factors>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "asking for shared memory");
    int device = 0, processors = 0;
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "asking for the number of processors");
    const std::int64_t tiles = static_cast<std::int64_t>(work.row_tiles) * work.column_tiles;
    const std::int64_t clusters = processors / cluster;
    const int blocks = static_cast<int>(cluster * (tiles < clusters ? tiles : clusters));
    kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(to.stream)>>>(rows, columns,
                                                                                    work);
    check(cudaGetLastError(), "launching the kernel");
}

template <typename T, int Size>
void choose_factors(const Launch& to, const Map& rows, const Map& columns, const Work& work) {
    if (to.alpha <= alpha_of_four_factors) {
        launch<T, Size, 4>(to, rows, columns, work);
    } else {
        launch<T, Size, 1>(to, rows, columns, work);
    }
}

template <typename T>
void choose_size(const Launch& to, const Map& rows, const Map& columns, const Work& work) {
    switch (to.rows.size) {
        case 2: return choose_factors<T, 2>(to, rows, columns, work);
        case 4: return choose_factors<T, 4>(to, rows, columns, work);
        case 8: return choose_factors<T, 8>(to, rows, columns, work);
        case 16: return choose_factors<T, 16>(to, rows, columns, work);
        case 32: return choose_factors<T, 32>(to, rows, columns, work);
        default: throw std::invalid_argument("sets must have 2, 4, 8, 16 or 32 elements");
    }
}

}  // namespace

void score(const Launch& to) {
    const Work work = work_of(to);
    const Map rows = encode(to.row_values, to.half, rows_shape(to.rows));
    const Map columns = encode(to.column_values, to.half, columns_shape(to.columns));
    if (to.half) {
        choose_size<Half>(to, rows, columns, work);
    } else {
        choose_size<Bfloat16>(to, rows, columns, work);
    }
}

}  // namespace divse::hopper
