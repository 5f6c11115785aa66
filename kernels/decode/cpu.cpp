// One token of one text through all layers of a decoder, in one call: what is left is reading every weight once.
//
// Threads stay together through the token: each keeps the residual stream for itself, takes its share of every
// matrix's rows and of the key/value heads, and waits where it needs what the others computed. Every intermediate is
// rounded to the model's dtype, as single operators would.
#include <omp.h>

#include <vector>

#include "../vector.h"

namespace {

struct Layer {  // addresses (0: not there), then sizes, as 64-bit integers
    int64_t norm_in, q, k, v, q_norm, k_norm, o, norm_out, ffn_norm_in, gate, up, down, ffn_norm_out;
    int64_t keys, values, cosine, sine;
    int64_t H, G, K, F, slots, qk_norm, normed_sum;  // slots: of a ring, else 0; qk_norm: 0 none, 1 head, 2 full
};

enum { NO_NORM, HEAD, FULL };

float sum_of(F16 v) {
    float s = 0;
    for (int l = 0; l < 16; l++) s += v[l];
    return s;
}

template <typename E>
float dot(const E* a, const float* x, int64_t n) {
    F16 s = all(0), t = all(0);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s += load(a + i) * load(x + i);
        t += load(a + i + 16) * load(x + i + 16);
    }
    float total = sum_of(s + t);
    for (; i < n; i++) total += wide(a[i]) * x[i];
    return total;
}

// The value as the model's dtype holds it.
template <typename E>
float rounded_to(float x) {
    E e;
    narrow(x, &e);
    return wide(e);
}

template <typename E>
void rms_norm(const float* x, const E* w, float eps, int64_t n, float* out) {
    F16 sum = all(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const F16 v = load(x + i);
        sum += v * v;
    }
    float total = sum_of(sum);
    for (; i < n; i++) total += x[i] * x[i];
    const float s = 1.0f / sqrtf(total / n + eps);
    for (i = 0; i < n; i++) out[i] = rounded_to<E>(x[i] * s * wide(w[i]));
}

struct Share {  // of n rows, what one thread takes
    int64_t from, to;
    Share(int64_t n, int thread, int threads) : from(n * thread / threads), to(n * (thread + 1) / threads) {}
};

template <typename E>
void product(const E* w, const float* x, int64_t k, Share rows, float* out) {
    for (int64_t r = rows.from; r < rows.to; r++) out[r] = rounded_to<E>(dot(w + r * k, x, k));
}

// x turned in place; the table's sine has the sign of rotate-half in it.
template <typename E>
void turn(float* x, const float* c, const float* s, int64_t n) {
    const int64_t half = n / 2;
    for (int64_t i = 0; i < half; i++) {
        const float p = x[i], q = x[half + i];
        x[i] = rounded_to<E>(p * c[i] + q * s[i]);
        x[half + i] = rounded_to<E>(q * c[half + i] + p * s[half + i]);
    }
}

struct Shared {  // what threads hand to each other
    std::vector<float> q, k, v, out, y, act, z;
};

// Attention of the query heads of one key/value head; its new key and value go into the cache first.
template <typename E>
void attend(const Layer& a, int64_t g, int64_t position, float eps, Shared& m, float* scores, float* full_q,
            float* full_k) {
    const int64_t K = a.K, row = a.G * K, slot = a.slots ? position % a.slots : position;
    const int64_t n_keys = a.slots && position + 1 > a.slots ? a.slots : position + 1;
    E *keys = (E*)a.keys + g * K, *values = (E*)a.values + g * K;
    const float *c = (const float*)a.cosine + position * K, *s = (const float*)a.sine + position * K;
    float* k = (a.qk_norm == FULL ? full_k : m.k.data()) + g * K;
    if (a.qk_norm == HEAD) rms_norm(k, (const E*)a.k_norm, eps, K, k);
    if (a.cosine) turn<E>(k, c, s, K);
    for (int64_t i = 0; i < K; i++) {
        narrow(k[i], keys + slot * row + i);
        narrow(m.v[g * K + i], values + slot * row + i);
    }
    const float scale = 1.0f / sqrtf((float)K);
    for (int64_t h = g * (a.H / a.G); h < (g + 1) * (a.H / a.G); h++) {
        float* q = (a.qk_norm == FULL ? full_q : m.q.data()) + h * K;
        if (a.qk_norm == HEAD) rms_norm(q, (const E*)a.q_norm, eps, K, q);
        if (a.cosine) turn<E>(q, c, s, K);
        float best = -INFINITY, total = 0;
        for (int64_t j = 0; j < n_keys; j++) {
            scores[j] = dot(keys + j * row, q, K) * scale;
            best = scores[j] > best ? scores[j] : best;
        }
        float* out = m.out.data() + h * K;
        for (int64_t i = 0; i < K; i++) out[i] = 0;
        for (int64_t j = 0; j < n_keys; j++) {
            const float p = expf(scores[j] - best);
            total += p;
            int64_t i = 0;
            for (; i + 16 <= K; i += 16) store(out + i, load(out + i) + load(values + j * row + i) * p);
            for (; i < K; i++) out[i] += wide(values[j * row + i]) * p;
        }
        for (int64_t i = 0; i < K; i++) out[i] = rounded_to<E>(out[i] / total);
    }
}

// x + F's output y, with the norm that follows it, if any.
template <typename E>
void add(float* x, const float* y, const void* norm, bool normed_sum, float eps, int64_t D, float* work) {
    if (!norm || normed_sum) {
        for (int64_t i = 0; i < D; i++) x[i] = rounded_to<E>(x[i] + y[i]);
        if (norm) rms_norm(x, (const E*)norm, eps, D, x);
        return;
    }
    rms_norm(y, (const E*)norm, eps, D, work);
    for (int64_t i = 0; i < D; i++) x[i] = rounded_to<E>(x[i] + work[i]);
}

template <typename E>
void token(int64_t D, int64_t n_layers, int64_t position, const Layer* layers, float eps, const E* embedded,
           const E* final_norm, int64_t V, const E* head, E* logits, int threads) {
    Shared m;
    int64_t most_q = 0, most_k = 0, most_f = 0;
    for (int64_t l = 0; l < n_layers; l++) {
        const Layer& a = layers[l];
        most_q = a.H * a.K > most_q ? a.H * a.K : most_q;
        most_k = a.G * a.K > most_k ? a.G * a.K : most_k;
        most_f = a.F > most_f ? a.F : most_f;
    }
    m.q.resize(most_q), m.k.resize(most_k), m.v.resize(most_k), m.out.resize(most_q);
    m.y.resize(D), m.z.resize(D), m.act.resize(most_f);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all_threads = omp_get_num_threads();
        std::vector<float> x(D), h(D), work(D), scores(position + 1), full_q(most_q), full_k(most_k);
        for (int64_t i = 0; i < D; i++) x[i] = wide(embedded[i]);
        for (int64_t l = 0; l < n_layers; l++) {
            const Layer& a = layers[l];
            const float* in = x.data();
            if (a.norm_in) rms_norm(x.data(), (const E*)a.norm_in, eps, D, h.data()), in = h.data();
            product((const E*)a.q, in, D, Share(a.H * a.K, me, all_threads), m.q.data());
            product((const E*)a.k, in, D, Share(a.G * a.K, me, all_threads), m.k.data());
            product((const E*)a.v, in, D, Share(a.G * a.K, me, all_threads), m.v.data());
#pragma omp barrier
            if (a.qk_norm == FULL) {
                rms_norm(m.q.data(), (const E*)a.q_norm, eps, a.H * a.K, full_q.data());
                rms_norm(m.k.data(), (const E*)a.k_norm, eps, a.G * a.K, full_k.data());
            }
            for (int64_t g = me; g < a.G; g += all_threads) {
                attend<E>(a, g, position, eps, m, scores.data(), full_q.data(), full_k.data());
            }
#pragma omp barrier
            product((const E*)a.o, m.out.data(), a.H * a.K, Share(D, me, all_threads), m.y.data());
#pragma omp barrier
            add<E>(x.data(), m.y.data(), (const void*)a.norm_out, a.normed_sum, eps, D, work.data());
            in = x.data();
            if (a.ffn_norm_in) rms_norm(x.data(), (const E*)a.ffn_norm_in, eps, D, h.data()), in = h.data();
            const Share rows(a.F, me, all_threads);
            for (int64_t r = rows.from; r < rows.to; r++) {
                const float gate = rounded_to<E>(dot((const E*)a.gate + r * D, in, D));
                const float up = rounded_to<E>(dot((const E*)a.up + r * D, in, D));
                m.act[r] = rounded_to<E>(gate / (1.0f + expf(-gate)) * up);
            }
#pragma omp barrier
            product((const E*)a.down, m.act.data(), a.F, Share(D, me, all_threads), m.z.data());
#pragma omp barrier
            add<E>(x.data(), m.z.data(), (const void*)a.ffn_norm_out, a.normed_sum, eps, D, work.data());
        }
        if (final_norm) rms_norm(x.data(), final_norm, eps, D, x.data());
        const Share rows(V, me, all_threads);
        for (int64_t r = rows.from; r < rows.to; r++) narrow(dot(head + r * D, x.data(), D), logits + r);
    }
}

}  // namespace

// n: width, layers, position of the token, vocabulary. embedded [width], logits [vocabulary]; final_norm may be null.
extern "C" void decode_token(int64_t is_bf16, const int64_t* n, const int64_t* layers, float eps, const void* embedded,
                             const void* final_norm, const void* head, void* logits, int threads) {
    const Layer* l = (const Layer*)layers;
    if (is_bf16) {
        return token<bf16>(n[0], n[1], n[2], l, eps, (const bf16*)embedded, (const bf16*)final_norm, n[3],
                           (const bf16*)head, (bf16*)logits, threads);
    }
    token<float>(n[0], n[1], n[2], l, eps, (const float*)embedded, (const float*)final_norm, n[3], (const float*)head,
                 (float*)logits, threads);
}
