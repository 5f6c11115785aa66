// silu(gate) * up and its gradient in one pass (arXiv 2002.05202 eq. 6).
#include "../vector.h"

namespace {

constexpr int64_t PIECE = 4096;  // elements that a thread takes at once

// 1 + e^-g; infinite where expv stops growing: g over it is then 0, and NaN for -infinity, as PyTorch has it.
static inline F16 denominator(F16 g) { return choose(g < -88.0f, all(INFINITY), 1.0f + expv(-g)); }

template <typename E>
void forward(int64_t n, const E* gate, const E* up, E* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t from = 0; from < n; from += PIECE) {
        const int64_t to = from + PIECE < n ? from + PIECE : n;
        int64_t i = from;
        for (; i + 16 <= to; i += 16) {
            const F16 g = load(gate + i);
            store(out + i, g / denominator(g) * load(up + i));
        }
        for (; i < to; i++) narrow(wide(gate[i]) / (1.0f + expf(-wide(gate[i]))) * wide(up[i]), out + i);
    }
}

template <typename E>
void backward(int64_t n, const E* gate, const E* up, const E* grad, E* dgate, E* dup, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t from = 0; from < n; from += PIECE) {
        const int64_t to = from + PIECE < n ? from + PIECE : n;
        int64_t i = from;
        for (; i + 16 <= to; i += 16) {
            const F16 g = load(gate + i), d = load(grad + i), s = 1.0f / denominator(g);
            store(dup + i, d * g * s);
            store(dgate + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
        }
        for (; i < to; i++) {
            const float g = wide(gate[i]), d = wide(grad[i]), s = 1.0f / (1.0f + expf(-g));
            narrow(d * g * s, dup + i);
            narrow(d * wide(up[i]) * s * (1.0f + g * (1.0f - s)), dgate + i);
        }
    }
}

}  // namespace

extern "C" {

void swiglu_forward(int64_t is_bf16, int64_t n, const void* gate, const void* up, void* out, int threads) {
    if (is_bf16) return forward(n, (const bf16*)gate, (const bf16*)up, (bf16*)out, threads);
    forward(n, (const float*)gate, (const float*)up, (float*)out, threads);
}

void swiglu_backward(int64_t is_bf16, int64_t n, const void* gate, const void* up, const void* grad, void* dgate, void* dup,
                     int threads) {
    if (is_bf16) {
        return backward(n, (const bf16*)gate, (const bf16*)up, (const bf16*)grad, (bf16*)dgate, (bf16*)dup, threads);
    }
    backward(n, (const float*)gate, (const float*)up, (const float*)grad, (float*)dgate, (float*)dup, threads);
}
}
