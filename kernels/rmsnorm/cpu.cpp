// RMSNorm (arXiv 1910.07467 eq. 4) and its gradient, a row at a time; statistics in fp32.
#include <vector>

#include "../vector.h"

namespace {

float sum_of(F16 v) {
    float s = 0;
    for (int x = 0; x < 16; x++) s += v[x];
    return s;
}

template <typename X, typename Y>
void forward(int64_t n_rows, int64_t n, const X* x, const float* w, float eps, Y* y, float* rstd, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < n_rows; r++) {
        const X* a = x + r * n;
        Y* b = y + r * n;
        F16 sum = all(0);
        int64_t i = 0;
        for (; i + 16 <= n; i += 16) {
            const F16 v = load(a + i);
            sum += v * v;
        }
        float total = sum_of(sum);
        for (; i < n; i++) total += wide(a[i]) * wide(a[i]);
        const float s = 1.0f / sqrtf(total / n + eps);
        rstd[r] = s;
        for (i = 0; i + 16 <= n; i += 16) store(b + i, load(a + i) * s * load(w + i));
        for (; i < n; i++) narrow(wide(a[i]) * s * w[i], b + i);
    }
}

// dx = rstd (g w - x̂ mean(g w x̂)), dw = sum over rows of g x̂, with x̂ = x rstd. dw: one row a thread.
template <typename X, typename Y>
void backward(int64_t n_rows, int64_t n, const X* x, const float* w, const float* rstd, const Y* g, X* dx, float* dw,
              int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int t = 0; t < threads; t++) {
        float* sums = dw + t * n;
        memset(sums, 0, 4 * n);
        for (int64_t r = n_rows * t / threads; r < n_rows * (t + 1) / threads; r++) {
            const X* a = x + r * n;
            const Y* h = g + r * n;
            X* d = dx + r * n;
            const float s = rstd[r];
            F16 dot = all(0);
            int64_t i = 0;
            for (; i + 16 <= n; i += 16) {
                const F16 gx = load(h + i) * (load(a + i) * s);
                store(sums + i, load(sums + i) + gx);
                dot += gx * load(w + i);
            }
            float total = sum_of(dot);
            for (; i < n; i++) {
                const float gx = wide(h[i]) * (wide(a[i]) * s);
                sums[i] += gx;
                total += gx * w[i];
            }
            const float mean = total / n;
            for (i = 0; i + 16 <= n; i += 16) {
                store(d + i, (load(h + i) * load(w + i) - load(a + i) * (s * mean)) * s);
            }
            for (; i < n; i++) narrow((wide(h[i]) * w[i] - wide(a[i]) * (s * mean)) * s, d + i);
        }
    }
}

}  // namespace

extern "C" {

// kinds: 1 if x is bf16 (else fp32), plus 2 if y is. w and rstd: fp32.
void rms_norm_forward(int64_t kinds, int64_t n_rows, int64_t n, const void* x, const float* w, float eps, void* y,
                      float* rstd, int threads) {
    if (kinds == 0) return forward(n_rows, n, (const float*)x, w, eps, (float*)y, rstd, threads);
    if (kinds == 1) return forward(n_rows, n, (const bf16*)x, w, eps, (float*)y, rstd, threads);
    if (kinds == 2) return forward(n_rows, n, (const float*)x, w, eps, (bf16*)y, rstd, threads);
    forward(n_rows, n, (const bf16*)x, w, eps, (bf16*)y, rstd, threads);
}

// dw [threads, n]: to be summed by the caller.
void rms_norm_backward(int64_t kinds, int64_t n_rows, int64_t n, const void* x, const float* w, const float* rstd,
                       const void* g, void* dx, float* dw, int threads) {
    if (kinds == 0) return backward(n_rows, n, (const float*)x, w, rstd, (const float*)g, (float*)dx, dw, threads);
    if (kinds == 1) return backward(n_rows, n, (const bf16*)x, w, rstd, (const float*)g, (bf16*)dx, dw, threads);
    if (kinds == 2) return backward(n_rows, n, (const float*)x, w, rstd, (const bf16*)g, (float*)dx, dw, threads);
    backward(n_rows, n, (const bf16*)x, w, rstd, (const bf16*)g, (bf16*)dx, dw, threads);
}
}
