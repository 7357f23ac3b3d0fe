/* int8 codes by channel: see kernels.py, which does the same in numpy where this was not compiled, to the same bits.

   All arithmetic is that of IEEE float32, one rounding an operation: no fused multiply-add (-ffp-contract=off). */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0 || defined(__FAST_MATH__)
#error "float32 is not computed in float32: without this module numpy does the work"
#endif

/* Compiled for several processors; which one it is, is seen when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define SUMMED 32 /* frames whose squares are summed in float32 before float64 takes them, as in kernels.py */
#define BLOCK 256 /* channels at once: what is between two loops stays in the first cache */
#define ROUNDER 12582912.0f /* 1.5 * 2^23: numbers below 2^22, added to it, are rounded to whole ones, half to even */

/* The least and the greatest bits of each channel: integers in the order of the floats once those below the sign are turned around
   for negative ones. NaN lies beyond infinity on either side. */
#define EXTREMES(name, integer, most)                                                                                  \
    FOR_EACH_PROCESSOR static void name(const integer *restrict bits, Py_ssize_t frames, Py_ssize_t width,             \
                                        integer *restrict low, integer *restrict high) {                               \
        const int sign = 8 * sizeof(integer) - 1;                                                                      \
        for (Py_ssize_t d = 0; d < width; d++) {                                                                       \
            low[d] = most;                                                                                             \
            high[d] = -most - 1;                                                                                       \
        }                                                                                                              \
        for (Py_ssize_t t = 0; t < frames; t++)                                                                        \
            for (Py_ssize_t d = 0; d < width; d++) {                                                                   \
                const integer b = bits[t * width + d], turned = b ^ ((b >> sign) & most);                              \
                low[d] = turned < low[d] ? turned : low[d];                                                            \
                high[d] = turned > high[d] ? turned : high[d];                                                         \
            }                                                                                                          \
        for (Py_ssize_t d = 0; d < width; d++) {                                                                       \
            low[d] ^= (low[d] >> sign) & most;                                                                         \
            high[d] ^= (high[d] >> sign) & most;                                                                       \
        }                                                                                                              \
    }

EXTREMES(extremes_of_halves, int16_t, INT16_MAX)
EXTREMES(extremes_of_floats, int32_t, INT32_MAX)

/* Finite float16 numbers as float32, exactly: sign and mantissa move to their places, the exponent counts from 15 instead of 127. */
static inline void widen(const int16_t *restrict halves, Py_ssize_t count, float *restrict out) {
    for (Py_ssize_t d = 0; d < count; d++) {
        const uint32_t bits = ((uint32_t)(int32_t)halves[d] << 13) & 0x8FFFE000u;
        memcpy(out + d, &bits, sizeof bits);
    }
    for (Py_ssize_t d = 0; d < count; d++)
        out[d] *= 0x1p112f;
}

/* The same of any float16: NaN of infinities, too. */
static void widen_any(const int16_t *halves, Py_ssize_t count, float *out) {
    widen(halves, count, out);
    for (Py_ssize_t d = 0; d < count; d++)
        if ((halves[d] & 0x7C00) == 0x7C00)
            out[d] = NAN;
}

/* codes = round((x - offset) / scale), and float64 sums of x^2 and of (x - restored)^2 by channel. `sums` [2, width] is for SUMMED frames. */
FOR_EACH_PROCESSOR static void encode(const char *values, int half, Py_ssize_t frames, Py_ssize_t width,
                                      const float *restrict scale, const float *restrict offset, int8_t *restrict codes,
                                      float *restrict sums, double *restrict signal, double *restrict noise) {
    float x[BLOCK], level[BLOCK], step[BLOCK];
    for (Py_ssize_t begin = 0; begin < frames; begin += SUMMED) {
        const Py_ssize_t end = begin + SUMMED < frames ? begin + SUMMED : frames;
        for (Py_ssize_t first = 0; first < width; first += BLOCK) {
            const Py_ssize_t count = width - first < BLOCK ? width - first : BLOCK;
            const float *restrict s = scale + first, *restrict o = offset + first;
            float *restrict squares = sums + first, *restrict lost_squares = sums + width + first;
            for (Py_ssize_t d = 0; d < count; d++) {
                step[d] = s[d] > 0 ? s[d] : 1.0f;
                squares[d] = lost_squares[d] = 0;
            }
            for (Py_ssize_t t = begin; t < end; t++) {
                const Py_ssize_t at = t * width + first;
                if (half)
                    widen((const int16_t *)values + at, count, x);
                else
                    memcpy(x, (const float *)values + at, count * sizeof(float));
                for (Py_ssize_t d = 0; d < count; d++) {
                    float whole = ((x[d] - o[d]) / step[d] + ROUNDER) - ROUNDER;
                    whole = whole > -128.0f ? whole : -128.0f;
                    level[d] = whole < 127.0f ? whole : 127.0f;
                }
                for (Py_ssize_t d = 0; d < count; d++)
                    codes[at + d] = (int8_t)level[d];
                for (Py_ssize_t d = 0; d < count; d++) {
                    const float lost = x[d] - (level[d] * s[d] + o[d]);
                    squares[d] += x[d] * x[d];
                    lost_squares[d] += lost * lost;
                }
            }
        }
        for (Py_ssize_t d = 0; d < width; d++) {
            signal[d] += sums[d];
            noise[d] += sums[width + d];
        }
    }
}

/* Scale and offset of each channel; whether all of them are finite. `bits` [2, width] holds the extremes. */
static int fit(const char *values, int half, Py_ssize_t frames, Py_ssize_t width, void *bits, float *scale, float *offset) {
    int finite = 1;
    float low[BLOCK], high[BLOCK];
    if (half)
        extremes_of_halves((const int16_t *)values, frames, width, bits, (int16_t *)bits + width);
    else
        extremes_of_floats((const int32_t *)values, frames, width, bits, (int32_t *)bits + width);
    for (Py_ssize_t first = 0; first < width; first += BLOCK) {
        const Py_ssize_t count = width - first < BLOCK ? width - first : BLOCK;
        if (half) {
            widen_any((int16_t *)bits + first, count, low);
            widen_any((int16_t *)bits + width + first, count, high);
        } else {
            memcpy(low, (float *)bits + first, count * sizeof(float));
            memcpy(high, (float *)bits + width + first, count * sizeof(float));
        }
        for (Py_ssize_t d = 0; d < count; d++) {
            scale[first + d] = (high[d] - low[d]) / 255.0f;
            offset[first + d] = low[d] + 128.0f * scale[first + d];
            finite &= scale[first + d] <= FLT_MAX && offset[first + d] <= FLT_MAX && offset[first + d] >= -FLT_MAX;
        }
    }
    return finite;
}

static PyObject *quantize(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer values, affine, powers, codes;
    int half;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*pw*w*w*:quantize", &values, &half, &affine, &powers, &codes))
        return NULL;
    const Py_ssize_t size = half ? 2 : 4, width = affine.len / (2 * (Py_ssize_t)sizeof(float));
    const Py_ssize_t frames = width ? codes.len / width : 0;
    if (affine.len != 2 * width * (Py_ssize_t)sizeof(float) || powers.len != 2 * affine.len ||
        codes.len != frames * width || values.len != size * codes.len) {
        PyErr_SetString(PyExc_ValueError, "values, affine, powers and codes of different shapes");
        goto done;
    }
    float *room = PyMem_Malloc(affine.len ? affine.len : 1), *scale = affine.buf;
    if (!room) {
        PyErr_NoMemory();
        goto done;
    }
    int finite;
    Py_BEGIN_ALLOW_THREADS
    finite = fit(values.buf, half, frames, width, room, scale, scale + width);
    memset(powers.buf, 0, powers.len);
    if (finite)
        encode(values.buf, half, frames, width, scale, scale + width, codes.buf, room, powers.buf, (double *)powers.buf + width);
    Py_END_ALLOW_THREADS
    PyMem_Free(room);
    result = PyBool_FromLong(finite);
done:
    PyBuffer_Release(&values);
    PyBuffer_Release(&affine);
    PyBuffer_Release(&powers);
    PyBuffer_Release(&codes);
    return result;
}

static PyMethodDef functions[] = {{"quantize", quantize, METH_VARARGS, "See kernels.py."}, {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot slots[] = {{0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", "int8 codes by channel.", 0, functions, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) {
    return PyModuleDef_Init(&definition);
}
