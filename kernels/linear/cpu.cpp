// Products of few rows with large matrices (decoding): bound by reading the matrices, each is read once.
#include "../vector.h"

namespace {

constexpr int64_t MOST_ROWS = 8, PIECE = 16;  // rows of x; rows of a matrix that a thread takes at once

template <int M, typename E>
void rows(int64_t k, const E* x, const E* w, int64_t n_rows, E* y, int64_t stride) {
    for (int64_t r = 0; r < n_rows; r++) {
        const E* a = w + r * k;
        F16 sum[M][2];
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = all(0);
        int64_t i = 0;
        for (; i + 32 <= k; i += 32) {
            const F16 p = load(a + i), q = load(a + i + 16);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                sum[m][0] += p * load(x + m * k + i);
                sum[m][1] += q * load(x + m * k + i + 16);
            }
        }
        for (int m = 0; m < M; m++) {
            const F16 both = sum[m][0] + sum[m][1];
            float total = 0;
            for (int l = 0; l < 16; l++) total += both[l];
            for (int64_t j = i; j < k; j++) total += wide(a[j]) * wide(x[m * k + j]);
            narrow(total, y + m * stride + r);
        }
    }
}

template <typename E>
void some_rows(int64_t m, int64_t k, const E* x, const E* w, int64_t n_rows, E* y, int64_t stride) {
    switch (m) {
        case 1: return rows<1>(k, x, w, n_rows, y, stride);
        case 2: return rows<2>(k, x, w, n_rows, y, stride);
        case 3: return rows<3>(k, x, w, n_rows, y, stride);
        case 4: return rows<4>(k, x, w, n_rows, y, stride);
        case 5: return rows<5>(k, x, w, n_rows, y, stride);
        case 6: return rows<6>(k, x, w, n_rows, y, stride);
        case 7: return rows<7>(k, x, w, n_rows, y, stride);
        default: return rows<8>(k, x, w, n_rows, y, stride);
    }
}

template <typename E>
void products(int64_t m, int64_t k, const E* x, int64_t count, const int64_t* n, void* const* w, void* const* y,
              int threads) {
    int64_t pieces = 0;
    for (int64_t c = 0; c < count; c++) pieces += (n[c] + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < pieces; p++) {
        int64_t c = 0, left = p;
        while (left >= (n[c] + PIECE - 1) / PIECE) left -= (n[c] + PIECE - 1) / PIECE, c++;
        const int64_t from = left * PIECE, size = n[c] - from < PIECE ? n[c] - from : PIECE;
        some_rows(m, k, x, (const E*)w[c] + from * k, size, (E*)y[c] + from, n[c]);
    }
}

}  // namespace

// y[c] [m, n[c]] = x [m, k] w[c]^T for `count` matrices w[c] [n[c], k], all contiguous; m <= 8; sums in fp32.
extern "C" void products_of_few_rows(int64_t is_bf16, int64_t m, int64_t k, const void* x, int64_t count,
                                     const int64_t* n, void* const* w, void* const* y, int threads) {
    if (is_bf16) return products(m, k, (const bf16*)x, count, n, w, y, threads);
    products(m, k, (const float*)x, count, n, w, y, threads);
}
