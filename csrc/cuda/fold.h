// From the cosines of a warpgroup's tile to Smooth-Chamfer scores, thread by thread.
//
// The tile is 128 rows by 128 columns of elements; sets have `Size` elements on both sides. A thread
// holds 4 rows of 32 columns (multiply in hopper.h), and rows and columns lie in shared memory in
// such an order (scores.h) that
//   its 4 rows are elements of one row set (of 4 / Size sets, where these are smaller),
//   its 32 columns are all elements of 32 / Size column sets.
// So sums over a column set never leave the thread; those over a row set of more than 4 elements
// are finished by the Size / 4 threads of a warp that share it, each for a part of the columns.
#pragma once

namespace divse::hopper {

template <int Size>
struct Layout {
    static_assert(Size == 2 || Size == 4 || Size == 8 || Size == 16 || Size == 32);
    static constexpr int sets = 128 / Size;      // of a tile, on either side
    static constexpr int warp_sets = 32 / Size;  // row sets of a warp
    static constexpr int row_sets = Size < 4 ? 4 / Size : 1;  // of a thread
    static constexpr int column_sets = 32 / Size;             // of a thread
    static constexpr int sharing = Size > 4 ? Size / 4 : 1;   // threads that share a row set

    // Those threads divide their 32 columns, first by sets, then each set by its elements.
    static constexpr int left = 32 / sharing;
    static constexpr int whole = left > Size ? left / Size : 1;
    static constexpr int elements = left / whole;
    static constexpr int by_sets = column_sets / whole, by_elements = sharing / by_sets;
    // Threads with the same score differ in these bits of their number.
    static constexpr int alike = 32 / by_sets - 32 / sharing;

    // Row r of a thread is half r / 2 of block r % 2. Element i of its row set `set`:
    DIVSE_DEVICE static constexpr int row(int set, int i) { return Size < 4 ? 2 * i + set : i; }
    // Where in its block a thread holds this row and element e of column set s.
    DIVSE_DEVICE static constexpr int slot(int row, int s, int e) {
        return 4 * ((e >> 1) * column_sets + s) + (row & 2) + (e & 1);
    }
};

// 2^x as exact as the special function (2^-22), by ordinary instructions: adding 1.5 2^23 leaves the
// nearest integer in the low bits, which go to the exponent; the rest, in [-1/2, 1/2], has a minimax
// polynomial. Unit vectors stay within +-117; beyond +128 the result is infinite as ever, below -126
// it is 2^-126, which a sum of elements that are no unit vectors may meet.
DIVSE_DEVICE float exp2_by_polynomial(float x) {
    x = x < 128.0f ? x : 128.0f;
    x = x > -126.0f ? x : -126.0f;
    const float rounded = x + 12582912.0f;
    const float r = x - (rounded - 12582912.0f);
    float p = 0.0013264726f * r + 0.009671513f;
    p = p * r + 0.055507336f;
    p = p * r + 0.24022242f;
    p = p * r + 0.693147f;
    p = p * r + 1.0f;
    return from_bits(bits_of(p) + static_cast<int>(static_cast<unsigned>(bits_of(rounded)) << 23));
}

// Sum of the logarithms of `Count` sums, `Factors` of which share one: alpha bounds what a product
// may reach (FACTOR_LIMITS in kernels/divse_kernels/problem.py).
template <int Count, int Factors>
DIVSE_DEVICE float sum_of_logs(const float* sums) {
    constexpr int factors = Factors < Count ? Factors : Count;
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < Count; i += factors) {
        float product = sums[i];
#pragma unroll
        for (int j = 1; j < factors; ++j) product *= sums[i + j];
        total += log2(product);
    }
    return total;
}

// Add up `values` over the threads that differ in the bits 16, 8, ... of their number, one bit for
// each factor of 2 in `Sharing`; every thread is left with its part, which begins at the returned
// position: while there are two values or more each step halves them, then all threads get the sum.
template <int Count, int Sharing>
DIVSE_DEVICE int share(float* values, int bit) {
    if constexpr (Sharing == 1) {
        return 0;
    } else if constexpr (Count == 1) {
        values[0] += exchange(values[0], bit);
        return share<1, Sharing / 2>(values, bit / 2);
    } else {
        const bool upper = (thread() & bit) != 0;
#pragma unroll
        for (int i = 0; i < Count / 2; ++i) {
            const float lower_half = values[i], upper_half = values[Count / 2 + i];
            const float given = exchange(upper ? lower_half : upper_half, bit);
            values[i] = (upper ? upper_half : lower_half) + given;
        }
        return (upper ? Count / 2 : 0) + share<Count / 2, Sharing / 2>(values, bit / 2);
    }
}

// Calls `put(row set, column set, logarithms)`, both counted within the thread: the sum of log2 of
// all row sums and of all column sums of a pair of sets. `cosines` become exponentials.
template <int Size, int Factors, class Put>
DIVSE_DEVICE void fold(float (&cosines)[2][64], float scale, const Put& put) {
    using L = Layout<Size>;
#pragma unroll
    for (int i = 0; i < 128; ++i) {
        float& x = cosines[i / 64][i % 64];
        // Special functions are scarcer than others, so that one element in four does without.
        x = i % 4 == 3 ? exp2_by_polynomial(x * scale) : exp2(x * scale);
    }
    const auto at = [&](int r, int s, int e) { return cosines[r & 1][L::slot(r, s, e)]; };
    constexpr int rows = 4 / L::row_sets;
    float row_logs[L::column_sets], column_sums[32];
#pragma unroll
    for (int set = 0; set < L::row_sets; ++set) {
#pragma unroll
        for (int s = 0; s < L::column_sets; ++s) {
            float row_sums[rows];
            float* sums = column_sums + s * Size;
#pragma unroll
            for (int i = 0; i < rows; ++i) {
                const int r = L::row(set, i);
                row_sums[i] = at(r, s, 0);
                sums[0] = i == 0 ? at(r, s, 0) : sums[0] + at(r, s, 0);
#pragma unroll
                for (int e = 1; e < Size; ++e) {
                    row_sums[i] += at(r, s, e);
                    sums[e] = i == 0 ? at(r, s, e) : sums[e] + at(r, s, e);
                }
            }
            row_logs[s] = sum_of_logs<rows, Factors>(row_sums);
            if constexpr (L::sharing == 1) {
                put(set, s, row_logs[s] + sum_of_logs<Size, Factors>(sums));
            }
        }
    }
    if constexpr (L::sharing > 1) {
        share<32, L::sharing>(column_sums, 16);
        const int first = share<L::column_sets, L::by_sets>(row_logs, 16);
#pragma unroll
        for (int s = 0; s < L::whole; ++s) {
            const float* sums = column_sums + s * L::elements;
            float logs = row_logs[s] + sum_of_logs<L::elements, Factors>(sums);
            share<1, L::by_elements>(&logs, 16 / L::by_sets);
            put(0, first + s, logs);
        }
    }
}

}  // namespace divse::hopper
