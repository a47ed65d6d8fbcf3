// exp2 and log2 over the lanes of a register type V (see avx2.cpp for what a V offers).
#pragma once

#include "kernel.h"

namespace divse {

// x -> 2^(scale x). The product is never rounded on its own: with n = round(scale x) the rest
// fma(scale, x, -n) is exact to half an ulp of 1/2, so the error stays near 1 ulp at any exponent.
template <class V>
struct Exp2 {
    using F = typename V::F;
    F scale, low, high;

    explicit Exp2(float s)
        : scale(V::broadcast(s)), low(V::broadcast(-125.0f / s)), high(V::broadcast(127.4f / s)) {}

    F operator()(F x) const {
        x = V::min(high, V::max(low, x));  // in this order a NaN passes through
        const F n = V::round(V::mul(x, scale));
        const F f = V::fms(x, scale, n);
        // Minimax in relative error on [-1/2, 1/2]: 1.9e-9; exact at 0.
        F p = V::broadcast(0x1.41d334p-13f);
        p = V::fma(p, f, V::broadcast(0x1.5f456ap-10f));
        p = V::fma(p, f, V::broadcast(0x1.3b2dbcp-7f));
        p = V::fma(p, f, V::broadcast(0x1.c6aed4p-5f));
        p = V::fma(p, f, V::broadcast(0x1.ebfbdap-3f));
        p = V::fma(p, f, V::broadcast(0x1.62e430p-1f));
        p = V::fma(p, f, V::broadcast(1.0f));
        return V::times_power_of_two(p, n);
    }
};

// As Exp2 with a relative error of 2.9e-6, for estimates.
template <class V>
struct RoughExp2 : Exp2<V> {
    using F = typename V::F;
    using Exp2<V>::Exp2;

    F operator()(F x) const {
        x = V::min(this->high, V::max(this->low, x));
        const F n = V::round(V::mul(x, this->scale));
        const F f = V::fms(x, this->scale, n);
        F p = V::broadcast(0x1.3a02ccp-7f);  // minimax on [-1/2, 1/2], exact at 0
        p = V::fma(p, f, V::broadcast(0x1.c9fc46p-5f));
        p = V::fma(p, f, V::broadcast(0x1.ec0378p-3f));
        p = V::fma(p, f, V::broadcast(0x1.62e12cp-1f));
        p = V::fma(p, f, V::broadcast(1.0f));
        return V::times_power_of_two(p, n);
    }
};

// log2 of positive normal numbers: m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m + 1)).
template <class V>
typename V::F log2(typename V::F x) {
    using F = typename V::F;
    const F one = V::broadcast(1.0f);
    F exponent = V::exponent(x), m = V::mantissa(x);
    const auto large = V::less(V::broadcast(1.41421356f), m);
    exponent = V::select(large, V::add(exponent, one), exponent);
    m = V::select(large, V::mul(m, V::broadcast(0.5f)), m);
    const F s = V::div(V::sub(m, one), V::add(m, one));
    const F z = V::mul(s, s);
    F p = V::broadcast(1.0f / 9);
    p = V::fma(p, z, V::broadcast(1.0f / 7));
    p = V::fma(p, z, V::broadcast(1.0f / 5));
    p = V::fma(p, z, V::broadcast(1.0f / 3));
    p = V::fma(p, z, one);
    return V::fma(V::mul(s, V::broadcast(2.8853900817779268f)), p, exponent);  // 2 / ln 2
}

// sum of log2(x) with one logarithm: exponents are added, mantissas in [1, 2) multiplied.
template <class V>
struct LogSum {
    using F = typename V::F;
    F exponents = V::zero(), product = V::broadcast(1.0f);
    int factors = 0;

    void add(F x) {
        exponents = V::add(exponents, V::exponent(x));
        product = V::mul(product, V::mantissa(x));
        if (++factors == 64) normalise();  // the product is below 2^65
    }

    void normalise() {
        exponents = V::add(exponents, V::exponent(product));
        product = V::mantissa(product);
        factors = 1;
    }

    F total() const { return V::add(exponents, log2<V>(product)); }
};

}  // namespace divse
