// Cross entropy of rows of logits, which become its gradient in place: softmax - onehot.
#include <vector>

#include "../vector.h"

namespace {

template <typename E>
float largest(const E* row, int64_t n) {
    F16 best = all(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) best = larger(best, load(row + i));
    float most = -INFINITY;
    for (int x = 0; x < 16; x++) most = best[x] > most ? best[x] : most;
    for (; i < n; i++) most = wide(row[i]) > most ? wide(row[i]) : most;
    return most;
}

// The exponentials of row - most, and their sum.
template <typename E>
float exponentials(const E* row, int64_t n, float most, float* out) {
    F16 sum = all(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const F16 e = expv(load(row + i) - most);
        store(out + i, e);
        sum += e;
    }
    float total = 0;
    for (int x = 0; x < 16; x++) total += sum[x];
    for (; i < n; i++) total += out[i] = expf(wide(row[i]) - most);
    return total;
}

template <typename E>
void rows(int64_t n_rows, int64_t n, E* logits, const int64_t* targets, int64_t ignored, float* nll, int gradient,
          int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> e(n);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n_rows; r++) {
            E* row = logits + r * n;
            if (targets[r] == ignored) {
                nll[r] = 0;
                if (gradient) memset((void*)row, 0, sizeof(E) * n);
                continue;
            }
            const float most = largest(row, n), total = exponentials(row, n, most, e.data());
            // In this order: most + logf(total) would round away the logarithm of large logits.
            nll[r] = logf(total) - (wide(row[targets[r]]) - most);
            if (!gradient) continue;
            const float inverse = 1.0f / total;
            e[targets[r]] -= total;
            int64_t i = 0;
            for (; i + 16 <= n; i += 16) store(row + i, load(e.data() + i) * inverse);
            for (; i < n; i++) narrow(e[i] * inverse, row + i);
        }
    }
}

}  // namespace

// logits [n_rows, n], contiguous; where a row's target is `ignored`, its loss and gradient are 0.
extern "C" void cross_entropy(int64_t is_bf16, int64_t n_rows, int64_t n, void* logits, const int64_t* targets,
                              int64_t ignored, float* nll, int64_t gradient, int threads) {
    if (is_bf16) return rows(n_rows, n, (bf16*)logits, targets, ignored, nll, gradient, threads);
    rows(n_rows, n, (float*)logits, targets, ignored, nll, gradient, threads);
}
