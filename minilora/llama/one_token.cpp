// One new token of each row through all layers of the Llama, in fp32: `Stepper.__call__` once more.
//
// Names and shapes are those of one_token.py; compiled_token.py fills the structures and says why.
#include <algorithm>
#include <cmath>

#include "quantize/product.h"

struct Layer {
    const float *first_norm, *second_norm;  // (C,)
    const float *q_norm, *k_norm;           // (D,) or null
    float first_epsilon, second_epsilon, q_epsilon, k_epsilon;
    Matrix query, key, value, out, gate, up, down;
    float *keys, *values;                   // the cache, (B, G, capacity, D)
};

struct Step {
    int64_t layers, B, C, H, G, D, F;
    int64_t capacity, seen;                 // tokens that the cache can hold, and that it holds
    int64_t threads;
    const int64_t* start;                   // (B,): the first token of each row that is real
    const float *cos, *sin;                 // (B, D) of the new position; sin as (-sin, sin)
};

// x / sqrt(mean(x²) + ε) · weight
static void norm(const float* x, const float* weight, float epsilon, int64_t size, float* out) {
    const float factor = 1 / std::sqrt(dot(x, x, size) / size + epsilon);
    for (int64_t i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
}

// x cos + x' sin, x' being x with its halves swapped
static void rotate(const float* x, const float* cos, const float* sin, int64_t D, float* out) {
    for (int64_t i = 0; i < D / 2; i++) {
        const float a = x[i], b = x[i + D / 2];
        out[i] = a * cos[i] + b * sin[i];
        out[i + D / 2] = b * cos[i + D / 2] + a * sin[i + D / 2];
    }
}

// One query (D,) over `count` keys and values (count, D) → y (D,); scores: memory (count,)
static void attend(const float* q, const float* keys, const float* values, int64_t count, int64_t D,
                   float* scores, float* y) {
    const float scale = 1 / std::sqrt((float)D);
    float largest = -INFINITY, sum = 0;
    for (int64_t s = 0; s < count; s++) {
        scores[s] = dot(q, keys + s * D, D) * scale;
        largest = std::max(largest, scores[s]);
    }
    std::fill(y, y + D, 0.0f);
    for (int64_t s = 0; s < count; s++) {
        const float weight = std::exp(scores[s] - largest);
        sum += weight;
        for (int64_t i = 0; i < D; i++) y[i] += weight * values[s * D + i];
    }
    for (int64_t i = 0; i < D; i++) y[i] /= sum;
}

// x (B, C) += attention of its norm
static void attention(const Layer& layer, const Step& step, float* x) {
    const int64_t B = step.B, C = step.C, H = step.H, G = step.G, D = step.D;
    std::vector<float> h(B * C), q(B * H * D), k(B * G * D), v(B * G * D), y(B * H * D);
    for (int64_t b = 0; b < B; b++)
        norm(x + b * C, layer.first_norm, layer.first_epsilon, C, h.data() + b * C);
    multiply(layer.query, h.data(), B, q.data(), false, step.threads);
    multiply(layer.key, h.data(), B, k.data(), false, step.threads);
    multiply(layer.value, h.data(), B, v.data(), false, step.threads);
    for (int64_t b = 0; b < B; b++) {
        const float *cos = step.cos + b * D, *sin = step.sin + b * D;
        for (int64_t head = 0; head < H; head++) {
            float* each = q.data() + (b * H + head) * D;
            if (layer.q_norm) norm(each, layer.q_norm, layer.q_epsilon, D, each);
            rotate(each, cos, sin, D, each);
        }
        for (int64_t g = 0; g < G; g++) {
            float* each = k.data() + (b * G + g) * D;
            const int64_t place = ((b * G + g) * step.capacity + step.seen) * D;
            if (layer.k_norm) norm(each, layer.k_norm, layer.k_epsilon, D, each);
            rotate(each, cos, sin, D, layer.keys + place);
            std::copy_n(v.data() + (b * G + g) * D, D, layer.values + place);
        }
    }
#pragma omp parallel num_threads(step.threads) if (step.threads > 1)
    {
        std::vector<float> scores(step.seen + 1);
#pragma omp for schedule(static)
        for (int64_t each = 0; each < B * H; each++) {
            const int64_t b = each / H, g = each % H / (H / G), from = step.start[b];
            const int64_t place = ((b * G + g) * step.capacity + from) * D;
            attend(q.data() + each * D, layer.keys + place, layer.values + place,
                   step.seen + 1 - from, D, scores.data(), y.data() + each * D);
        }
    }
    multiply(layer.out, y.data(), B, x, true, step.threads);
}

// x (B, C) += down(silu(gate(h)) · up(h)), h being its norm
static void mlp(const Layer& layer, const Step& step, float* x) {
    const int64_t B = step.B, C = step.C, F = step.F;
    std::vector<float> h(B * C), gate(B * F), up(B * F);
    for (int64_t b = 0; b < B; b++)
        norm(x + b * C, layer.second_norm, layer.second_epsilon, C, h.data() + b * C);
    multiply(layer.gate, h.data(), B, gate.data(), false, step.threads);
    multiply(layer.up, h.data(), B, up.data(), false, step.threads);
    for (int64_t i = 0; i < B * F; i++) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    multiply(layer.down, gate.data(), B, x, true, step.threads);
}

// x (B, C): the embedded token on the way in, the running vector after the last layer on the way out
extern "C" void one_token(const Layer* layers, const Step* step, float* x) {
    for (int64_t index = 0; index < step->layers; index++) {
        attention(layers[index], *step, x);
        mlp(layers[index], *step, x);
    }
}
