// Softmax attention and its gradient, block by block (Dao 2023, arXiv 2307.08691), for CPUs.
//
// Everything is held transposed: a block of scores has keys as rows and queries as columns, so that maxima,
// sums and log-sum-exps of queries are vectors and need no reduction across lanes. Products are C += A B with A
// row by row; in bf16 they run on the matrix unit (AMX), for which B holds pairs of rows interleaved.
// One task is one (batch, key/value head) with all its query heads: results do not depend on the threads.
#include <cfloat>
#include <cstdlib>
#include <vector>

#include "../vector.h"
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_AMX 1
#endif

namespace {

constexpr int N = 64;  // queries and keys of a block
constexpr float LOWEST = -FLT_MAX;  // not above any finite score; -infinity is what is hidden

struct Sizes {
    int64_t B, H, G, T, S, K, V;
    int64_t causal, window;  // window 0: none
    float scale;
    int64_t up(int64_t n) const { return (n + N - 1) / N * N; }
};

// Strides in elements of (batch, position, head); the last dimension is contiguous.
struct Strides { int64_t b, t, h; };

// Working memory of a thread, kept for its next task: what is allocated and freed between tensors scatters them.
struct Memory {
    char* start = nullptr;
    size_t size = 0;
    ~Memory() { free(start); }
};
thread_local Memory memory;

// Hands out pieces of a task's working memory, one after the other.
struct Pieces {
    size_t used = 0;
    explicit Pieces(size_t bytes, int count) {
        bytes += 64 * count;
        if (bytes > memory.size) {
            free(memory.start);
            memory.start = (char*)aligned_alloc(64, (bytes + 63) / 64 * 64);
            memory.size = bytes;
        }
    }
    template <typename X>
    X* take(int64_t n) {
        X* piece = (X*)(memory.start + used);
        used += (n * sizeof(X) + 63) / 64 * 64;
        return piece;
    }
};

// ---- products

struct Plain {  // fp32 on vectors
    typedef float T;
    static int64_t wide(int64_t n) { return (n + 15) / 16 * 16; }

    // C[M, n] += A[M, k] B[k, n]; M a multiple of 8, n of 16.
    template <int V>
    static void strip(const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc, int64_t M,
                      int64_t k, bool fresh) {
        for (int64_t m = 0; m < M; m += 8) {
            F16 c[8][V];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) c[i][v] = fresh ? all(0) : load(C + (m + i) * ldc + 16 * v);
            const float* a = A + m * lda;
            for (int64_t x = 0; x < k; x++) {
                F16 b[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) b[v] = load(B + x * ldb + 16 * v);
    #pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) c[i][v] += a[i * lda + x] * b[v];
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) store(C + (m + i) * ldc + 16 * v, c[i][v]);
        }
    }
    __attribute__((noinline)) static void product(const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc, int64_t M,
                        int64_t n, int64_t k, bool fresh) {
        int64_t x = 0;
        for (; x + 32 <= n; x += 32) strip<2>(A, lda, B + x, ldb, C + x, ldc, M, k, fresh);
        if (x < n) strip<1>(A, lda, B + x, ldb, C + x, ldc, M, k, fresh);
    }
    // A block of scores [N keys, N queries] as left factor (rows) and as right factor.
    __attribute__((noinline)) static void rows(const float* x, float* out) { memcpy(out, x, sizeof(float) * N * N); }
    __attribute__((noinline)) static void pairs(const float* x, float* out) { memcpy(out, x, sizeof(float) * N * N); }

    // Rows [n, width] of a tensor as right factor: contraction over positions, or over the width.
    __attribute__((noinline)) static void right_positions(const float* x, int64_t stride, int64_t n, int64_t width, float* out, int64_t padded_n,
                                int64_t W) {
        for (int64_t t = 0; t < padded_n; t++)
            for (int64_t w = 0; w < W; w++) out[t * W + w] = t < n && w < width ? x[t * stride + w] : 0.0f;
    }
    __attribute__((noinline)) static void right_width(const float* x, int64_t stride, int64_t n, int64_t width, float* out, int64_t padded_n,
                            int64_t W) {
        memset(out, 0, sizeof(float) * padded_n * W);
        for (int64_t t = 0; t < n; t++)
            for (int64_t w = 0; w < width; w++) out[t / N * N * W + w * N + t % N] = x[t * stride + w];
    }
};

#ifdef HAS_AMX
struct alignas(64) Tiles {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

struct Matrix {  // bf16 on the matrix unit
    typedef bf16 T;
    // Others in this thread (oneDNN) remember which configuration they loaded: it is put back.
    Tiles before;
    Matrix() {
        _tile_storeconfig(&before);
        Tiles t = {};
        t.palette = 1;
        for (int i = 0; i < 8; i++) t.bytes[i] = 64, t.rows[i] = 16;
        _tile_loadconfig(&t);
    }
    ~Matrix() {
        if (before.palette)
            _tile_loadconfig(&before);
        else
            _tile_release();
    }
    static int64_t wide(int64_t n) { return (n + 31) / 32 * 32; }

    // C[M, n] += A[M, k] B[k, n]; M, n and k multiples of 32. B: [k / 2][n][2].
    __attribute__((noinline)) static void product(const bf16* A, int64_t lda, const bf16* B, int64_t ldb, float* C, int64_t ldc, int64_t M,
                        int64_t n, int64_t k, bool fresh) {
        asm volatile("" ::: "memory");  // the tile instructions do not say what memory they use
        for (int64_t m = 0; m < M; m += 32)
            for (int64_t x = 0; x < n; x += 32) {
                float* c = C + m * ldc + x;
                if (fresh) {
                    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
                } else {
                    _tile_loadd(0, c, ldc * 4); _tile_loadd(1, c + 16, ldc * 4);
                    _tile_loadd(2, c + 16 * ldc, ldc * 4); _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
                }
                for (int64_t y = 0; y < k; y += 32) {
                    _tile_loadd(4, A + m * lda + y, lda * 2);
                    _tile_loadd(5, A + (m + 16) * lda + y, lda * 2);
                    _tile_loadd(6, B + y * ldb + 2 * x, ldb * 4);
                    _tile_loadd(7, B + y * ldb + 2 * x + 32, ldb * 4);
                    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, c, ldc * 4); _tile_stored(1, c + 16, ldc * 4);
                _tile_stored(2, c + 16 * ldc, ldc * 4); _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
            }
        asm volatile("" ::: "memory");
    }
    __attribute__((noinline)) static void rows(const float* x, bf16* out) {
        for (int i = 0; i < N * N; i += 32) {
            __m512bh h = _mm512_cvtne2ps_pbh((__m512)load(x + i + 16), (__m512)load(x + i));
            memcpy(out + i, &h, 64);
        }
    }
    __attribute__((noinline)) static void pairs(const float* x, bf16* out) {
        for (int r = 0; r < N; r += 2)
            for (int i = 0; i < N; i += 16) {
                I16 low = (rounded(load(x + r * N + i)) >> 16) & 0xffff;
                I16 high = rounded(load(x + (r + 1) * N + i)) & (int32_t)0xffff0000;
                I16 both = low | high;
                *(I16m*)(out + r * N + 2 * i) = both;
            }
    }
    __attribute__((noinline)) static void right_positions(const bf16* x, int64_t stride, int64_t n, int64_t width, bf16* out, int64_t padded_n,
                                int64_t W) {
        memset(out, 0, 2 * padded_n * W);
        for (int64_t t = 0; t < n; t++) {
            bf16* row = out + (t / 2) * 2 * W + t % 2;
            for (int64_t w = 0; w < width; w++) row[2 * w] = x[t * stride + w];
        }
    }
    __attribute__((noinline)) static void right_width(const bf16* x, int64_t stride, int64_t n, int64_t width, bf16* out, int64_t padded_n,
                            int64_t W) {
        memset(out, 0, 2 * padded_n * W);
        for (int64_t t = 0; t < n; t++)
            for (int64_t w = 0; w < width; w++)
                out[t / N * N * W + w / 2 * 2 * N + t % N * 2 + w % 2] = x[t * stride + w];
    }
};
#endif

// Rows [n, width] as left factor, padded with zeros; and the same transposed.
template <typename E>
__attribute__((noinline)) void left(const E* x, int64_t stride, int64_t n, int64_t width, E* out, int64_t padded_n, int64_t W) {
    memset(out, 0, sizeof(E) * padded_n * W);
    for (int64_t t = 0; t < n; t++) memcpy(out + t * W, x + t * stride, sizeof(E) * width);
}
template <typename E>
__attribute__((noinline)) void left_transposed(const E* x, int64_t stride, int64_t n, int64_t width, E* out, int64_t padded_n, int64_t W) {
    memset(out, 0, sizeof(E) * padded_n * W);
    for (int64_t t = 0; t < n; t++)
        for (int64_t w = 0; w < width; w++) out[t / N * N * W + w * N + t % N] = x[t * stride + w];
}

// ---- what is seen

enum Seen { NOTHING, SOME, EVERYTHING };

struct Sight {
    const Sizes& z;
    const uint8_t* mask;  // of this text's keys, or null
    int64_t offset;       // of query 0 among the keys

    Seen block(int64_t i, int64_t j) const {
        int64_t first = i + offset, last = (i + N < z.T ? i + N : z.T) - 1 + offset, end = j + N - 1;
        if (j >= z.S) return NOTHING;
        if (z.causal && j > last) return NOTHING;
        if (z.window && (first - end >= z.window || j - last >= z.window)) return NOTHING;
        if (mask || end >= z.S) return SOME;
        if (z.causal && end > first) return SOME;
        if (z.window && (last - j >= z.window || end - first >= z.window)) return SOME;
        return EVERYTHING;
    }
    // Put -infinity where 16 queries from i do not see key j.
    F16 hidden(F16 s, int64_t i, int64_t j) const {
        static const I16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        if (j >= z.S) return all(-INFINITY);
        I16 distance = lanes + (int32_t)(i + offset - j);
        I16 seen = distance == distance;
        if (z.causal) seen &= distance >= 0;
        if (z.window) seen &= (distance < (int32_t)z.window) & (distance > -(int32_t)z.window);
        if (mask && !mask[j]) seen &= distance == 0;
        return choose(seen, s, all(-INFINITY));
    }
};

// ---- forward

template <typename P>
void forward_task(const Sizes& z, int64_t b, int64_t g, const typename P::T* q, Strides qs, const typename P::T* k,
                  Strides ks, const typename P::T* v, Strides vs, const uint8_t* mask, typename P::T* out,
                  Strides os, float* lse) {
    typedef typename P::T E;
    const int64_t Tp = z.up(z.T), Sp = z.up(z.S), Kp = P::wide(z.K), Vp = P::wide(z.V), per = z.H / z.G;
    Pieces pieces(sizeof(E) * (Sp * (Kp + Vp) + Tp * Kp + N * N) + 4 * N * (N + Vp), 6);
    E *keys = pieces.take<E>(Sp * Kp), *values = pieces.take<E>(Sp * Vp), *queries = pieces.take<E>(Tp * Kp);
    E* p = pieces.take<E>(N * N);
    float *s = pieces.take<float>(N * N), *o = pieces.take<float>(Vp * N);
    left(k + b * ks.b + g * ks.h, ks.t, z.S, z.K, keys, Sp, Kp);
    left_transposed(v + b * vs.b + g * vs.h, vs.t, z.S, z.V, values, Sp, Vp);
    const Sight sight{z, mask ? mask + b * z.S : nullptr, z.S - z.T};
    for (int64_t h = g * per; h < (g + 1) * per; h++) {
        P::right_width(q + b * qs.b + h * qs.h, qs.t, z.T, z.K, queries, Tp, Kp);
        for (int64_t i = 0; i < z.T; i += N) {
            F16 top[N / 16], sum[N / 16];
            for (int x = 0; x < N / 16; x++) top[x] = all(LOWEST), sum[x] = all(0);
            memset(o, 0, 4 * Vp * N);
            for (int64_t j = 0; j < z.S; j += N) {
                const Seen seen = sight.block(i, j);
                if (seen == NOTHING) continue;
                P::product(keys + j * Kp, Kp, queries + i * Kp, N, s, N, N, N, Kp, true);
                for (int x = 0; x < N / 16; x++) {
                    F16 best = top[x];
                    for (int y = 0; y < N; y++) {
                        F16 t = load(s + y * N + 16 * x) * z.scale;
                        if (seen == SOME) t = sight.hidden(t, i + 16 * x, j + y);
                        store(s + y * N + 16 * x, t);
                        best = larger(best, t);
                    }
                    const F16 shrink = expv(top[x] - best);
                    top[x] = best;
                    F16 total = all(0);
                    for (int y = 0; y < N; y++) {
                        F16 t = expv(load(s + y * N + 16 * x) - best);
                        total += t;
                        store(s + y * N + 16 * x, t);
                    }
                    sum[x] = sum[x] * shrink + total;
                    for (int64_t y = 0; y < Vp; y++) {
                        store(o + y * N + 16 * x, load(o + y * N + 16 * x) * shrink);
                    }
                }
                P::pairs(s, p);
                P::product(values + j * Vp, N, p, N, o, N, Vp, N, N, false);
            }
            const int64_t n = z.T - i < N ? z.T - i : N;
            float total[N], best[N];
            for (int x = 0; x < N / 16; x++) store(total + 16 * x, sum[x]), store(best + 16 * x, top[x]);
            for (int64_t x = 0; x < n; x++) {
                lse[(b * z.H + h) * z.T + i + x] = best[x] + logf(total[x]);
                E* row = out + b * os.b + (i + x) * os.t + h * os.h;
                const float inverse = 1.0f / total[x];
                for (int64_t y = 0; y < z.V; y++) narrow(o[y * N + x] * inverse, row + y);
            }
        }
    }
}

// ---- backward

template <typename P>
void backward_task(const Sizes& z, int64_t b, int64_t g, const typename P::T* q, Strides qs, const typename P::T* k,
                   Strides ks, const typename P::T* v, Strides vs, const uint8_t* mask, const typename P::T* out,
                   Strides os, const float* lse, const typename P::T* grad, Strides gs, typename P::T* dq, Strides dqs,
                   typename P::T* dk, Strides dks, typename P::T* dv, Strides dvs) {
    typedef typename P::T E;
    const int64_t Tp = z.up(z.T), Sp = z.up(z.S), Kp = P::wide(z.K), Vp = P::wide(z.V), per = z.H / z.G;
    const int64_t elements = Sp * (2 * Kp + Vp) + 2 * Tp * (Kp + Vp) + 3 * N * N;
    const int64_t floats = Tp * (Kp + 2) + Sp * (Kp + Vp) + 2 * N * N;
    Pieces pieces(sizeof(E) * elements + 4 * floats, 17);
    E *keys = pieces.take<E>(Sp * Kp), *keysT = pieces.take<E>(Sp * Kp), *values = pieces.take<E>(Sp * Vp);
    E *qw = pieces.take<E>(Tp * Kp), *qp = pieces.take<E>(Tp * Kp);
    E *gw = pieces.take<E>(Tp * Vp), *gp = pieces.take<E>(Tp * Vp);
    float *dqT = pieces.take<float>(Tp * Kp), *dkA = pieces.take<float>(Sp * Kp), *dvA = pieces.take<float>(Sp * Vp);
    float *lseP = pieces.take<float>(Tp), *delta = pieces.take<float>(Tp);
    float *s = pieces.take<float>(N * N), *t = pieces.take<float>(N * N);
    E *p = pieces.take<E>(N * N), *d = pieces.take<E>(N * N), *dp = pieces.take<E>(N * N);
    left(k + b * ks.b + g * ks.h, ks.t, z.S, z.K, keys, Sp, Kp);
    left_transposed(k + b * ks.b + g * ks.h, ks.t, z.S, z.K, keysT, Sp, Kp);
    left(v + b * vs.b + g * vs.h, vs.t, z.S, z.V, values, Sp, Vp);
    memset(dkA, 0, 4 * Sp * Kp);
    memset(dvA, 0, 4 * Sp * Vp);
    const Sight sight{z, mask ? mask + b * z.S : nullptr, z.S - z.T};
    for (int64_t h = g * per; h < (g + 1) * per; h++) {
        const E *qh = q + b * qs.b + h * qs.h, *gh = grad + b * gs.b + h * gs.h, *oh = out + b * os.b + h * os.h;
        P::right_width(qh, qs.t, z.T, z.K, qw, Tp, Kp);
        P::right_positions(qh, qs.t, z.T, z.K, qp, Tp, Kp);
        P::right_width(gh, gs.t, z.T, z.V, gw, Tp, Vp);
        P::right_positions(gh, gs.t, z.T, z.V, gp, Tp, Vp);
        for (int64_t x = 0; x < Tp; x++) {
            float sum = 0;
            if (x < z.T)
                for (int64_t y = 0; y < z.V; y++) sum += wide(gh[x * gs.t + y]) * wide(oh[x * os.t + y]);
            delta[x] = sum;
            lseP[x] = x < z.T ? lse[(b * z.H + h) * z.T + x] : INFINITY;
        }
        memset(dqT, 0, 4 * Tp * Kp);
        for (int64_t j = 0; j < z.S; j += N)
            for (int64_t i = 0; i < z.T; i += N) {
                const Seen seen = sight.block(i, j);
                if (seen == NOTHING) continue;
                P::product(keys + j * Kp, Kp, qw + i * Kp, N, s, N, N, N, Kp, true);
                P::product(values + j * Vp, Vp, gw + i * Vp, N, t, N, N, N, Vp, true);
                for (int x = 0; x < N; x += 16) {
                    const F16 l = load(lseP + i + x), e = load(delta + i + x);
                    for (int y = 0; y < N; y++) {
                        F16 a = load(s + y * N + x) * z.scale;
                        if (seen == SOME) a = sight.hidden(a, i + x, j + y);
                        a = expv(a - l);
                        store(s + y * N + x, a);
                        store(t + y * N + x, a * (load(t + y * N + x) - e) * z.scale);
                    }
                }
                P::rows(s, p);
                P::rows(t, d);
                P::product(p, N, gp + i * Vp, Vp, dvA + j * Vp, Vp, N, Vp, N, false);
                P::product(d, N, qp + i * Kp, Kp, dkA + j * Kp, Kp, N, Kp, N, false);
                P::pairs(t, dp);
                P::product(keysT + j * Kp, N, dp, N, dqT + i * Kp, N, Kp, N, N, false);
            }
        for (int64_t x = 0; x < z.T; x++) {
            E* row = dq + b * dqs.b + x * dqs.t + h * dqs.h;
            for (int64_t y = 0; y < z.K; y++) narrow(dqT[x / N * N * Kp + y * N + x % N], row + y);
        }
    }
    for (int64_t x = 0; x < z.S; x++) {
        E *krow = dk + b * dks.b + x * dks.t + g * dks.h, *vrow = dv + b * dvs.b + x * dvs.t + g * dvs.h;
        for (int64_t y = 0; y < z.K; y++) narrow(dkA[x * Kp + y], krow + y);
        for (int64_t y = 0; y < z.V; y++) narrow(dvA[x * Vp + y], vrow + y);
    }
}

template <typename P>
void forward(const Sizes& z, void* const* at, const Strides* st, const uint8_t* mask, float* lse, int threads) {
    typedef typename P::T E;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < z.B * z.G; task++) {
        P unit;  // set up for this thread while it lives
        (void)unit;
        forward_task<P>(z, task / z.G, task % z.G, (const E*)at[0], st[0], (const E*)at[1], st[1], (const E*)at[2],
                        st[2], mask, (E*)at[3], st[3], lse);
    }
}

template <typename P>
void backward(const Sizes& z, void* const* at, const Strides* st, const uint8_t* mask, const float* lse, int threads) {
    typedef typename P::T E;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < z.B * z.G; task++) {
        P unit;  // set up for this thread while it lives
        (void)unit;
        backward_task<P>(z, task / z.G, task % z.G, (const E*)at[0], st[0], (const E*)at[1], st[1], (const E*)at[2],
                         st[2], mask, (const E*)at[3], st[3], lse, (const E*)at[4], st[4], (E*)at[5], st[5],
                         (E*)at[6], st[6], (E*)at[7], st[7]);
    }
}

Sizes sizes_of(const int64_t* n, float scale) {
    return Sizes{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], scale};
}

}  // namespace

extern "C" {

// Whether bf16 can be computed: the matrix unit is there and the system lets this process use it.
int attention_has_bf16() {
#ifdef HAS_AMX
    static const int granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return granted;
#else
    return 0;
#endif
}

// n: B, H, G, T, S, K, V, causal, window. at: q, k, v, out. strides: (batch, position, head) of each.
void attention_forward(int64_t is_bf16, const int64_t* n, float scale, void* const* at, const int64_t* strides,
                       const uint8_t* mask, float* lse, int threads) {
    const Sizes z = sizes_of(n, scale);
#ifdef HAS_AMX
    if (is_bf16) return forward<Matrix>(z, at, (const Strides*)strides, mask, lse, threads);
#endif
    forward<Plain>(z, at, (const Strides*)strides, mask, lse, threads);
}

// at: q, k, v, out, grad of out, dq, dk, dv.
void attention_backward(int64_t is_bf16, const int64_t* n, float scale, void* const* at, const int64_t* strides,
                        const uint8_t* mask, const float* lse, int threads) {
    const Sizes z = sizes_of(n, scale);
#ifdef HAS_AMX
    if (is_bf16) return backward<Matrix>(z, at, (const Strides*)strides, mask, lse, threads);
#endif
    backward<Plain>(z, at, (const Strides*)strides, mask, lse, threads);
}
}
