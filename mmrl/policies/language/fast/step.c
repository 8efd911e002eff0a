/* One token a row through a decoder: see lean.py for what a layer is, native.py for who calls this.

A chunk is up to LANES rows. Its activations lie transposed, (features, LANES): a row is a lane of every vector, a
weight is multiplied with all rows at once, and a row's sums are the same whichever rows are beside it, to the last bit
for one LANES (a compiler may round otherwise for another). */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define TILE 16   /* own tokens whose keys lie side by side: (B, kv heads, t / TILE, size, TILE) */
#define SUM 256   /* inputs of a product that are added up in one go */
#define WORDS 768 /* logits that are turned from lanes into rows at a time */
#define BLOCK 128 /* own tokens between two looks at the largest score */
#define MOST 4    /* queries that read own keys and values together */
#ifdef __AVX512F__
#define OUTS 12 /* outputs whose sums stay in registers */
#define WIDE 8  /* of a value's vectors of eight, as many */
#else
#define OUTS 6
#define WIDE 4
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int lane_bits __attribute__((vector_size(4 * LANES)));
typedef float tile __attribute__((vector_size(4 * TILE), aligned(4)));
typedef int tile_bits __attribute__((vector_size(4 * TILE)));
typedef float eight __attribute__((vector_size(32), aligned(4)));

typedef struct {
    const float *norm, *q, *q_bias, *k, *k_bias, *v, *v_bias, *q_norm, *k_norm, *o, *o_bias;
    const float *norm_after, *gate, *gate_bias, *up, *up_bias, *down, *down_bias;
    const float *prompt_keys, *prompt_values; /* (prompts, kv heads, longest, size) */
    float *keys, *values;                     /* own tokens: tiles; (B, kv heads, room, size) */
    float eps, eps_after, eps_q, eps_k, scaling;
} layer_t;

typedef struct {
    const layer_t *layers;
    const float *embeddings, *norm, *head, *head_bias;
    float eps;
    int64_t count, hidden, inner, heads, kv, size, words;
} model_t;

typedef struct {
    const int64_t *tokens, *context, *begin; /* of rows; of rows; of prompts: places of padding */
    const float *cosines, *sines;         /* (B, size) */
    int64_t longest, written, room;
    float *logits; /* (B, words) */
} step_t;

/* e to the x, two units in the last place; what is no number stays none */
#define EXP(NAME, V, B)                                                                                        \
    INLINE V NAME(V x) {                                                                                       \
        const V low = x * 0 - 87.0f, high = x * 0 + 88.0f;                                                     \
        B under = x < low, over = x > high;                                                                    \
        x = (V)((under & (B)low) | (~under & (B)x));                                                           \
        x = (V)((over & (B)high) | (~over & (B)x));                                                            \
        V n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;                                                   \
        V r = x - n * 0.693359375f + n * 2.12194440e-4f;                                                       \
        V p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r \
               + 1.6666665459e-1f) * r + 5.0000001201e-1f;                                                     \
        p = p * r * r + r + 1.0f;                                                                              \
        return p * (V)((__builtin_convertvector(n, B) + 127) << 23);                                           \
    }
EXP(exp_lanes, lanes, lane_bits)
EXP(exp_tile, tile, tile_bits)

#define LARGER(NAME, V, B)                       \
    INLINE V NAME(V a, V b) {                    \
        B first = a > b;                         \
        return (V)((first & (B)a) | (~first & (B)b)); \
    }
LARGER(larger_lanes, lanes, lane_bits)
LARGER(larger_tile, tile, tile_bits)

/* y[j] (+)= bias[j] + sum over i of w[j row + i column] x[i], for n outputs; the weights behind them are asked for */
INLINE void outputs(const int n, const float *w, int64_t row, int64_t column, const lanes *x, int64_t in,
                    const float *bias, lanes *y, int add, const int ahead) {
    lanes sum[OUTS];
    for (int j = 0; j < n; j++) sum[j] = (lanes){0};
    for (int64_t from = 0; from < in; from += 16) {
        int64_t to = in - from < 16 ? in : from + 16;
        if (ahead)
            for (int j = 0; j < n; j++) __builtin_prefetch(w + (n + j) * row + from, 0, 2);
        for (int64_t i = from; i < to; i++) {
            lanes one = x[i];
            for (int j = 0; j < n; j++) sum[j] += one * w[j * row + i * column];
        }
    }
    for (int j = 0; j < n; j++) {
        if (bias) sum[j] += bias[j];
        y[j] = add ? y[j] + sum[j] : sum[j];
    }
}

/* SUM inputs at a time, whose sums are added: rounding grows with the length of a sum */
INLINE void sums(const int n, const float *w, int64_t row, int64_t column, const lanes *x, int64_t in,
                 const float *bias, lanes *y, int add, const int ahead) {
    for (int64_t from = 0; from < in; from += SUM, bias = 0, add = 1)
        outputs(n, w + from * column, row, column, x + from, in - from < SUM ? in - from : SUM, bias, y, add, ahead);
}

/* y (out, LANES) (+)= w (out, in) x (in, LANES) + bias (out,) */
static void product(const float *w, const float *bias, const lanes *x, int64_t in, int64_t out, lanes *y, int add) {
    int64_t o = 0;
    for (; o + OUTS <= out; o += OUTS) sums(OUTS, w + o * in, in, 1, x, in, bias ? bias + o : 0, y + o, add, 1);
    for (; o < out; o++) sums(1, w + o * in, in, 1, x, in, bias ? bias + o : 0, y + o, add, 1);
}

/* the same of w (in, out) */
static void across(const float *w, const lanes *x, int64_t in, int64_t out, lanes *y) {
    int64_t o = 0;
    for (; o + OUTS <= out; o += OUTS) sums(OUTS, w + o, 1, out, x, in, 0, y + o, 0, 0);
    for (; o + 4 <= out; o += 4) sums(4, w + o, 1, out, x, in, 0, y + o, 0, 0);
    for (; o < out; o++) sums(1, w + o, 1, out, x, in, 0, y + o, 0, 0);
}

static void norm(const lanes *x, const float *weight, float eps, int64_t n, lanes *y) {
    lanes sum[4] = {{0}};
    for (int64_t i = 0; i < n; i++) sum[i % 4] += x[i] * x[i];
    lanes mean = (sum[0] + sum[1] + sum[2] + sum[3]) / (float)n + eps, inverse;
    for (int l = 0; l < LANES; l++) inverse[l] = 1.0f / sqrtf(mean[l]);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * inverse * weight[i];
}

static void rotate(lanes *head, const lanes *cosines, const lanes *sines, int64_t size) {
    for (int64_t i = 0, half = size / 2; i < half; i++) {
        lanes a = head[i], b = head[i + half];
        head[i] = a * cosines[i] + b * sines[i];
        head[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

/* scores (TILE,) of `n` queries with a tile of keys (size, TILE) */
INLINE void tile_scores(const int n, const float *q, const float *keys, int64_t size, float *scores) {
    tile sum[2 * MOST] = {{0}};
    for (int64_t i = 0; i < size; i += 2) {
        tile even = *(const tile *)(keys + i * TILE), odd = *(const tile *)(keys + (i + 1) * TILE);
        for (int j = 0; j < n; j++) sum[2 * j] += even * q[j * size + i], sum[2 * j + 1] += odd * q[j * size + i + 1];
    }
    for (int j = 0; j < n; j++) *(tile *)(scores + j * BLOCK) = sum[2 * j] + sum[2 * j + 1];
}

/* out[j] = fade[j] out[j] + sum over tokens of shares[j] values, `wide` vectors of eight from a place on */
INLINE void add_values(const int n, const int wide, const float *shares, const float *fade, const float *values,
                       int64_t tokens, int64_t size, float *out) {
    eight sum[MOST][WIDE];
    for (int j = 0; j < n; j++)
        for (int c = 0; c < wide; c++) sum[j][c] = *(eight *)(out + j * size + 8 * c) * fade[j];
    for (int64_t t = 0; t < tokens; t++)
        for (int c = 0; c < wide; c++) {
            eight value = *(const eight *)(values + t * size + 8 * c);
            for (int j = 0; j < n; j++) sum[j][c] += value * shares[j * BLOCK + t];
        }
    for (int j = 0; j < n; j++)
        for (int c = 0; c < wide; c++) *(eight *)(out + j * size + 8 * c) = sum[j][c];
}

/* n queries of one row and key head over its own tokens: out (n, size) not divided by total (n,), scores from top */
INLINE void on_own(const int n, const float *q, const float *keys, const float *values, int64_t tokens, int64_t size,
                   float *out, float *top, float *total) {
    float scores[MOST * BLOCK] __attribute__((aligned(64)));
    for (int j = 0; j < n; j++) top[j] = -INFINITY, total[j] = 0;
    memset(out, 0, n * size * 4);
    for (int64_t from = 0; from < tokens; from += BLOCK) {
        int64_t here = tokens - from < BLOCK ? tokens - from : BLOCK, tiles = (here + TILE - 1) / TILE;
        float fade[MOST];
        for (int64_t c = 0; c < tiles; c++) {
            const float *at = keys + (from + c * TILE) * size;
            for (int64_t i = 0; i < size; i++) __builtin_prefetch(at + (size + i) * TILE, 0, 3);
            tile_scores(n, q, at, size, scores + c * TILE);
        }
        for (int j = 0; j < n; j++) {
            float *mine = scores + j * BLOCK, most = top[j], sum = 0;
            for (int64_t t = here; t < tiles * TILE; t++) mine[t] = -INFINITY;
            tile many = *(tile *)mine, sums = {0};
            for (int64_t c = 1; c < tiles; c++) many = larger_tile(many, *(tile *)(mine + c * TILE));
            for (int t = 0; t < TILE; t++) most = many[t] > most ? many[t] : most;
            for (int64_t c = 0; c < tiles; c++) {
                tile share = exp_tile(*(tile *)(mine + c * TILE) - most);
                *(tile *)(mine + c * TILE) = share;
            }
            for (int64_t t = here; t < tiles * TILE; t++) mine[t] = 0;
            for (int64_t c = 0; c < tiles; c++) sums += *(tile *)(mine + c * TILE);
            for (int t = 0; t < TILE; t++) sum += sums[t];
            fade[j] = from ? expf(top[j] - most) : 0;
            total[j] = total[j] * fade[j] + sum;
            top[j] = most;
        }
        int64_t i = 0;
        for (; i + 8 * WIDE <= size; i += 8 * WIDE)
            add_values(n, WIDE, scores, fade, values + from * size + i, here, size, out + i);
        for (; i < size; i += 8) add_values(n, 1, scores, fade, values + from * size + i, here, size, out + i);
    }
}

typedef struct {
    lanes *x, *read, *q, *k, *v, *out, *gate, *up, *cosines, *sines, *asked, *scores, *found, *words;
    float *own, *own_top, *own_total, *query;
    void *all;
} room_t;

static room_t room_of(const model_t *m, const step_t *s) {
    int64_t wide = m->heads * m->size, narrow = m->kv * m->size;
    int64_t rest = (wide + 2 * m->heads) * LANES + m->size * MOST;
    int64_t sizes[] = {m->hidden, m->hidden, wide, narrow, narrow, wide, m->inner, m->inner, m->size, m->size,
                    m->size, s->longest, m->size, WORDS};
    int64_t count = 0;
    for (int i = 0; i < 14; i++) count += sizes[i];
    room_t r;
    r.all = aligned_alloc(64, (count * LANES * 4 + rest * 4 + 127) / 64 * 64);
    lanes *next = r.all, **of[] = {&r.x, &r.read, &r.q, &r.k, &r.v, &r.out, &r.gate, &r.up, &r.cosines, &r.sines,
                                   &r.asked, &r.scores, &r.found, &r.words};
    for (int i = 0; i < 14; next += sizes[i++]) *of[i] = next;
    r.own = (float *)next, r.own_top = r.own + wide * LANES, r.own_total = r.own_top + m->heads * LANES;
    r.query = r.own_total + m->heads * LANES;
    return r;
}

/* own tokens of rows from `first` on, the new one among them, put in its place */
static void own_part(const model_t *m, const layer_t *y, const step_t *s, room_t *r, int64_t first, int64_t rows) {
    int64_t size = m->size, group = m->heads / m->kv, at = s->written;
    for (int64_t l = 0; l < rows; l++)
        for (int64_t h = 0; h < m->kv; h++) {
            float *keys = y->keys + ((first + l) * m->kv + h) * s->room * size;
            float *values = y->values + ((first + l) * m->kv + h) * s->room * size;
            for (int64_t i = 0; i < size; i++) {
                keys[at / TILE * TILE * size + i * TILE + at % TILE] = r->k[h * size + i][l];
                values[at * size + i] = r->v[h * size + i][l];
            }
            for (int64_t j = 0, n; j < group; j += n) {
                n = group - j >= 4 ? 4 : group - j >= 2 ? 2 : 1;
                int64_t head = h * group + j, place = l * m->heads + head;
                for (int64_t i = 0; i < n * size; i++) r->query[i] = r->q[head * size + i][l] * y->scaling;
                float *out = r->own + place * size, *top = r->own_top + place, *total = r->own_total + place;
                if (n == 4) on_own(4, r->query, keys, values, at + 1, size, out, top, total);
                else if (n == 2) on_own(2, r->query, keys, values, at + 1, size, out, top, total);
                else on_own(1, r->query, keys, values, at + 1, size, out, top, total);
            }
        }
}

/* the lanes of `asked`, (row, head) `pairs` of one prompt, over its keys, joined with their own part into `out` */
static void prompt_part(const model_t *m, const layer_t *y, const step_t *s, room_t *r, int64_t prompt, int64_t h,
                        const int64_t (*pairs)[2], int64_t n) {
    int64_t size = m->size, from = s->begin[prompt], count = s->longest - from;
    const float *keys = y->prompt_keys + ((prompt * m->kv + h) * s->longest + from) * size;
    const float *values = y->prompt_values + ((prompt * m->kv + h) * s->longest + from) * size;
    for (int64_t i = 0; i < size; i++) {
        lanes one = {0};
        for (int64_t p = 0; p < n; p++) one[p] = r->q[pairs[p][1] * size + i][pairs[p][0]] * y->scaling;
        r->asked[i] = one;
    }
    product(keys, 0, r->asked, size, count, r->scores, 0);
    lanes top = r->scores[0], own_top = {0}, own_total = {0}, part[4] = {{0}};
    for (int64_t t = 1; t < count; t++) top = larger_lanes(top, r->scores[t]);
    for (int64_t p = 0; p < n; p++) {
        int64_t place = pairs[p][0] * m->heads + pairs[p][1];
        own_top[p] = r->own_top[place], own_total[p] = r->own_total[place];
    }
    top = larger_lanes(top, own_top);
    for (int64_t t = 0; t < count; t++) r->scores[t] = exp_lanes(r->scores[t] - top), part[t % 4] += r->scores[t];
    lanes own = exp_lanes(own_top - top);
    lanes total = part[0] + part[1] + part[2] + part[3] + own * own_total;
    across(values, r->scores, count, size, r->found);
    for (int64_t p = 0; p < n; p++) {
        int64_t l = pairs[p][0], head = pairs[p][1];
        const float *mine = r->own + (l * m->heads + head) * size;
        for (int64_t i = 0; i < size; i++)
            r->out[head * size + i][l] = (r->found[i][p] + own[p] * mine[i]) / total[p];
    }
}

static void attention(const model_t *m, const layer_t *y, const step_t *s, room_t *r, int64_t first, int64_t rows) {
    int64_t group = m->heads / m->kv, pairs[LANES][2];
    own_part(m, y, s, r, first, rows);
    for (int64_t h = 0; h < m->kv; h++)
        for (int64_t l = 0, n = 0; l < rows; l++)
            for (int64_t j = 0; j < group; j++) {
                pairs[n][0] = l, pairs[n++][1] = h * group + j;
                int last = j + 1 == group && (l + 1 == rows || s->context[first + l + 1] != s->context[first + l]);
                if (n == LANES || last) prompt_part(m, y, s, r, s->context[first + l], h, pairs, n), n = 0;
            }
}

static void layer(const model_t *m, const layer_t *y, const step_t *s, room_t *r, int64_t first, int64_t rows) {
    int64_t size = m->size, wide = m->heads * size, narrow = m->kv * size;
    norm(r->x, y->norm, y->eps, m->hidden, r->read);
    product(y->q, y->q_bias, r->read, m->hidden, wide, r->q, 0);
    product(y->k, y->k_bias, r->read, m->hidden, narrow, r->k, 0);
    product(y->v, y->v_bias, r->read, m->hidden, narrow, r->v, 0);
    for (int64_t h = 0; h < m->heads; h++) {
        if (y->q_norm) norm(r->q + h * size, y->q_norm, y->eps_q, size, r->q + h * size);
        rotate(r->q + h * size, r->cosines, r->sines, size);
    }
    for (int64_t h = 0; h < m->kv; h++) {
        if (y->k_norm) norm(r->k + h * size, y->k_norm, y->eps_k, size, r->k + h * size);
        rotate(r->k + h * size, r->cosines, r->sines, size);
    }
    attention(m, y, s, r, first, rows);
    product(y->o, y->o_bias, r->out, wide, m->hidden, r->x, 1);
    norm(r->x, y->norm_after, y->eps_after, m->hidden, r->read);
    product(y->gate, y->gate_bias, r->read, m->hidden, m->inner, r->gate, 0);
    product(y->up, y->up_bias, r->read, m->hidden, m->inner, r->up, 0);
    for (int64_t i = 0; i < m->inner; i++) r->gate[i] = r->gate[i] / (exp_lanes(-r->gate[i]) + 1.0f) * r->up[i];
    product(y->down, y->down_bias, r->gate, m->inner, m->hidden, r->x, 1);
}

/* Append a token to each of rows [first, first + rows), at most LANES; their logits. 0, or 1 without memory. */
int step(const model_t *m, const step_t *s, int64_t first, int64_t rows) {
    room_t r = room_of(m, s);
    if (!r.all) return 1;
    for (int64_t l = 0; l < LANES; l++) {
        const float *of = m->embeddings + (l < rows ? s->tokens[first + l] * m->hidden : 0);
        for (int64_t i = 0; i < m->hidden; i++) r.x[i][l] = l < rows ? of[i] : 0;
    }
    for (int64_t i = 0; i < m->size; i++)
        for (int64_t l = 0; l < LANES; l++) {
            r.cosines[i][l] = l < rows ? s->cosines[(first + l) * m->size + i] : 0;
            r.sines[i][l] = l < rows ? s->sines[(first + l) * m->size + i] : 0;
        }
    memset(r.out, 0, m->heads * m->size * sizeof(lanes));
    for (int64_t i = 0; i < m->count; i++) layer(m, m->layers + i, s, &r, first, rows);
    norm(r.x, m->norm, m->eps, m->hidden, r.read);
    for (int64_t from = 0; from < m->words; from += WORDS) {
        int64_t here = m->words - from < WORDS ? m->words - from : WORDS;
        const float *bias = m->head_bias ? m->head_bias + from : 0;
        product(m->head + from * m->hidden, bias, r.read, m->hidden, here, r.words, 0);
        for (int64_t l = 0; l < rows; l++)
            for (int64_t w = 0; w < here; w++) s->logits[(first + l) * m->words + from + w] = r.words[w][l];
    }
    free(r.all);
    return 0;
}
