"""Device functions shared by the forward and the backward kernel.

A tile is BLOCK_M x BLOCK_N cosines: the elements of whole *row sets* against the elements of whole
*column sets* (either side may be the queries). Sets are padded to a power of two of elements,
K to K2 and L to L2, so a tile holds M_SETS = BLOCK_M / K2 row sets and N_SETS = BLOCK_N / L2
column sets. Padding is masked after the dot product, where a NaN is still confined to its own
row or column.

The order inside a tile follows the registers of the tensor cores, where one thread holds rows
r and r + 8 of a group of 16 rows, the same rows of the groups that its warp repeats on, and
columns spread over all of the tile:

    rows      viewed as (OUTER, OUTER_SETS, PAIR, INNER_SETS, LANE)
              the set is (OUTER_SETS, INNER_SETS), the element (OUTER, PAIR, LANE)
    columns   viewed as (L2, N_SETS), the element first

Sums over a column set then stay inside a thread, sums over a row set leave it for LANE only, and
sums that share a logarithm are a thread's own.
"""

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

#: What stands for alpha x cosine at padding: no score reaches it, and differences stay finite.
MASKED = tl.constexpr(-1.0e30)
#: Scales float32 elements of unit vectors so that their second part in float16 is a normal number.
MIXED_SCALE = tl.constexpr(64.0)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def multiply(a, b):
    """The combine function of `product`."""
    return a * b


#: Whether kernels run under TRITON_INTERPRET=1, which refuses inline assembly and custom
#: reductions in reasonable time, and takes bf16 operands of `tl.dot` for raw bits.
INTERPRET = tl.constexpr(isinstance(multiply, InterpretedFunction))


@triton.jit
def bound(x):
    """A bound for `range`: Triton 3.6, interpreted, cannot convert its scalars with NumPy 2.4."""
    if INTERPRET:
        return x.handle.data.item()
    else:
        return x


@triton.jit
def log2(x):
    """Logarithm in one instruction; `tl.log2` is a polynomial of some twenty."""
    if INTERPRET:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def exp2_by_polynomial(x):
    """2 ** x for x > -126 as exact as the special function, 2 ** -22, in ten ordinary instructions.

    Adding 1.5 * 2 ** 23 leaves the nearest integer in the low bits, which go to the exponent; the
    rest, in [-1/2, 1/2], has a minimax polynomial. Past the range the result is infinite, as ever.
    """
    x = tl.minimum(x, 128.0)
    rounded = x + 12582912.0
    r = x - (rounded - 12582912.0)
    p = 0.0013264726 * r + 0.009671513
    p = p * r + 0.055507336
    p = p * r + 0.24022242
    p = p * r + 0.693147
    p = p * r + 1.0
    exponent = rounded.to(tl.int32, bitcast=True) << 23
    return (p.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@triton.jit
def reciprocal(x):
    """1 / x in one instruction, for an x that is no denormal; `/` also rescales its operands."""
    if INTERPRET:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def product(x, axis: tl.constexpr):
    """Product over an axis of size 2."""
    if INTERPRET:
        order: tl.constexpr = [i for i in range(len(x.shape)) if i != axis] + [axis]
        a, b = tl.split(tl.permute(x, order))
        return a * b
    else:
        return tl.reduce(x, axis, multiply)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b, accumulated in float32; float32 operands are not rounded to TF32."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_in_parts(a, b, acc):
    """acc + a @ b for a float32 b and a in 16 bits, which tensor cores multiply with parts of b.

    Two parts in float16 hold 22 bits of a normal number, three in bfloat16 hold 24.
    """
    PARTS: tl.constexpr = 2 if a.dtype == tl.float16 else 3
    for _ in tl.static_range(PARTS):
        part = b.to(a.dtype)
        acc = dot(a, part, acc)
        b -= part.to(tl.float32)
    return acc


@triton.jit
def dot_of_elements(rows, columns, acc):
    """acc + rows @ columns.T; times MIXED_SCALE where one is float32 and the other of 16 bits."""
    if rows.dtype == columns.dtype:
        return dot(rows, columns.T, acc)
    elif columns.dtype == tl.float32:
        return dot_in_parts(rows, columns.T * MIXED_SCALE, acc)
    else:
        PARTS: tl.constexpr = 2 if columns.dtype == tl.float16 else 3
        left = rows * MIXED_SCALE
        for _ in tl.static_range(PARTS):
            part = left.to(columns.dtype)
            acc = dot(part, columns.T, acc)
            left -= part.to(tl.float32)
        return acc


@triton.jit
def row_order(BLOCK_M: tl.constexpr, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr):
    """Set and element of every row of a tile: two `[BLOCK_M]`."""
    INNER_SETS: tl.constexpr = 16 // (PAIR * LANE)
    OUTER_SETS: tl.constexpr = BLOCK_M // (16 * OUTER)
    r = tl.arange(0, BLOCK_M)
    lane = r % LANE
    inner_set = (r % (LANE * INNER_SETS)) // LANE
    pair = (r % 16) // (LANE * INNER_SETS)
    outer_set = (r // 16) % OUTER_SETS
    outer = r // (16 * OUTER_SETS)
    return outer_set * INNER_SETS + inner_set, (outer * PAIR + pair) * LANE + lane


@triton.jit
def element_offsets(sets, elements, stride_set, stride_element):
    """Offsets of elements in memory, 64-bit before the products.

    Strides come in units of 8 values: so the compiler knows that rows are aligned for vectors.
    """
    return (sets.to(tl.int64) * stride_set + elements.to(tl.int64) * stride_element) * 8


@triton.jit
def set_lengths(lengths_ptr, sets, SIZE: tl.constexpr, RAGGED: tl.constexpr):
    """Number of elements of each set, in the shape of `sets`."""
    if RAGGED:
        return tl.load(lengths_ptr + sets).to(tl.int32)
    else:
        return tl.zeros_like(sets) + SIZE


@triton.jit
def cosine_tile(
    row_ptr,
    row_offsets,  # [BLOCK_M]
    column_ptr,
    column_offsets,  # [BLOCK_N]
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
):
    """Dot products of rows and columns, `[BLOCK_M, BLOCK_N]` in float32.

    One side may be float32 where the other is of 16 bits: the products are as exact as in float32.
    """
    MIXED: tl.constexpr = row_ptr.dtype.element_ty != column_ptr.dtype.element_ty
    dims = tl.arange(0, BLOCK_D)
    row_ptrs = row_ptr + row_offsets[:, None] + dims[None, :]
    column_ptrs = column_ptr + column_offsets[:, None] + dims[None, :]
    cosines = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, bound(D), BLOCK_D):
        if EVEN_D:
            rows = tl.load(row_ptrs)
            columns = tl.load(column_ptrs)
        else:
            rows = tl.load(row_ptrs, mask=dims[None, :] < D - start, other=0.0)
            columns = tl.load(column_ptrs, mask=dims[None, :] < D - start, other=0.0)
        cosines = dot_of_elements(rows, columns, cosines)
        row_ptrs += BLOCK_D
        column_ptrs += BLOCK_D
    return cosines * (1.0 / MIXED_SCALE) if MIXED else cosines


@triton.jit
def by_column_set(x, L2: tl.constexpr):
    """View `[M, BLOCK_N]` as `[M, L2, N_SETS]`."""
    return tl.reshape(x, (x.shape[0], L2, x.shape[1] // L2))


@triton.jit
def by_row_set(x, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr):
    """View `[BLOCK_M, N]` as `[OUTER, OUTER_SETS, PAIR, INNER_SETS, LANE, N]`."""
    OUTER_SETS: tl.constexpr = x.shape[0] // (16 * OUTER)
    return tl.reshape(x, (OUTER, OUTER_SETS, PAIR, 16 // (PAIR * LANE), LANE, x.shape[1]))


@triton.jit
def sum_row_sets(x):
    """Sum `by_row_set` over the elements of each set, axes kept; a thread's own values first."""
    x = tl.sum(x, axis=2, keep_dims=True)
    x = tl.sum(x, axis=0, keep_dims=True)
    return tl.sum(x, axis=4, keep_dims=True)


@triton.jit
def max_row_sets(x):
    """Maximum of `by_row_set` over the elements of each set, axes kept."""
    x = tl.max(x, axis=2, keep_dims=True)
    x = tl.max(x, axis=0, keep_dims=True)
    return tl.max(x, axis=4, keep_dims=True)
