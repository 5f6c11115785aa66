// Rotary positions (arXiv 2104.09864 eq. 34), rotate-half layout: component i turns with i + R / 2.
#include "../vector.h"

namespace {

template <typename E>
void rotate(int64_t B, int64_t T, int64_t H, int64_t R, const E* x, const int64_t* stride, const float* cosine,
            const float* sine, int64_t table, float sign, E* out, int threads) {
    const int64_t half = R / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < B * T; n++) {
        const int64_t b = n / T, t = n % T;
        const float *c = cosine + b * table + t * R, *s = sine + b * table + t * R;
        for (int64_t h = 0; h < H; h++) {
            const E* a = x + b * stride[0] + t * stride[1] + h * stride[2];
            E* o = out + (n * H + h) * R;
            int64_t i = 0;
            // The table's sine has the sign of rotate-half in it: minus in the first half, plus in the second.
            for (; i + 16 <= half; i += 16) {
                const F16 p = load(a + i), q = load(a + half + i);
                store(o + i, p * load(c + i) + q * load(s + i) * sign);
                store(o + half + i, q * load(c + half + i) + p * load(s + half + i) * sign);
            }
            for (; i < half; i++) {
                const float p = wide(a[i]), q = wide(a[half + i]);
                narrow(p * c[i] + q * s[i] * sign, o + i);
                narrow(q * c[half + i] + p * s[half + i] * sign, o + half + i);
            }
        }
    }
}

}  // namespace

// x [B, T, H, R] with strides (batch, position, head); tables [T, R], or [B, T, R] with `table` = T * R; sign 1 turns
// forward, -1 back; out is contiguous.
extern "C" void rotary(int64_t is_bf16, const int64_t* n, const void* x, const int64_t* stride, const float* cosine,
                       const float* sine, int64_t table, float sign, void* out, int threads) {
    if (is_bf16) {
        return rotate(n[0], n[1], n[2], n[3], (const bf16*)x, stride, cosine, sine, table, sign, (bf16*)out, threads);
    }
    rotate(n[0], n[1], n[2], n[3], (const float*)x, stride, cosine, sine, table, sign, (float*)out, threads);
}
