// Vectors of 16 floats, as GCC and Clang have them on every processor; bf16 conversions; exp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
// The same in memory, wherever it lies.
typedef float F16m __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t I16m __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint16_t H16m __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t bf16;

static inline F16 all(float x) { return F16{} + x; }
static inline F16 load(const float* p) { return *(const F16m*)p; }
static inline void store(float* p, F16 v) { *(F16m*)p = v; }

// bf16 -> fp32 is a shift; fp32 -> bf16 rounds to nearest even (NaN is not kept apart: none gets here).
static inline F16 load(const bf16* p) {
    H16 h = *(const H16m*)p;
    return (F16)(__builtin_convertvector(h, I16) << 16);
}
static inline I16 rounded(F16 v) {
    I16 b = (I16)v;
    return b + 0x7fff + ((b >> 16) & 1);
}
static inline void store(bf16* p, F16 v) {
    *(H16m*)p = __builtin_convertvector((rounded(v) >> 16) & 0xffff, H16);
}
static inline float wide(float x) { return x; }
static inline float wide(bf16 x) {
    uint32_t b = (uint32_t)x << 16;
    float f;
    memcpy(&f, &b, 4);
    return f;
}
static inline void narrow(float x, float* p) { *p = x; }
static inline void narrow(float x, bf16* p) {
    uint32_t b;
    memcpy(&b, &x, 4);
    *p = (bf16)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

static inline F16 choose(I16 condition, F16 yes, F16 no) {
    return (F16)(((I16)yes & condition) | ((I16)no & ~condition));
}
static inline F16 larger(F16 a, F16 b) { return choose(a > b, a, b); }

// e^x to 1e-7 relative; 0 below -87 (and for -infinity), e^88 above 88; NaN stays NaN.
static inline F16 expv(F16 given) {
    const I16 tiny = given < -87.0f;
    F16 x = choose(tiny, all(-87.0f), given);
    x = choose(x > 88.0f, all(88.0f), x);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const F16 n = (x * 1.44269504088896341f + magic) - magic;
    F16 r = x - n * 0.693359375f;  // ln 2 in two parts, the first with few digits
    r = r + n * 2.12194440e-4f;
    F16 p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const F16 y = (F16)((I16)p + (__builtin_convertvector(n, I16) << 23));
    return choose(given == given, choose(tiny, all(0.0f), y), given);
}
