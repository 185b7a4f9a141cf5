/* Decodes and resizes crops of JPEGs: the pixels of Pillow to the bit, in less time. See jpeg.py.

   libjpeg-turbo computes the inverse DCT of the crop alone; its rows are resized horizontally while
   they are in the cache, then vertically. Files may be damaged or malicious: wherever libjpeg gives
   an error or a warning the functions return None, and the caller leaves the file to Pillow. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: others cannot decode a crop, or upsample differently"
#endif

#include "_resize.h"

/* ---- Decoding with libjpeg-turbo ---- */

typedef struct {
    struct jpeg_error_mgr errors;
    jmp_buf failed;
    struct jpeg_decompress_struct jpeg;
    Py_buffer data;
    long long most_pixels;
    int most_scans;
    int left, top, width, height;
    Resizer resizer; /* `resizer.out` is the output of decode_all as well */
} Job;

static void fail(j_common_ptr jpeg) { longjmp(((Job *)jpeg->err)->failed, 1); }

/* Warnings, whose level is negative, count as failures; trace messages are ignored. */
static void on_message(j_common_ptr jpeg, int level) {
    if (level < 0) fail(jpeg);
}

static void no_output(j_common_ptr jpeg) { (void)jpeg; }

static bool ends_as_a_jpeg(const uint8_t *data, Py_ssize_t size) {
    while (size && !data[size - 1]) size--;
    return size > 3 && data[size - 2] == 0xff && data[size - 1] == 0xd9;
}

/* True if there are more than `most` scans, each of which is a pass over the whole picture. Within
   the data of a scan 0xff is followed by 0, so 0xff 0xda starts one. */
static bool has_scans_beyond(const uint8_t *data, Py_ssize_t size, int most) {
    const uint8_t *end = data + size - 1; /* the second byte of the end marker */
    while ((data = memchr(data, 0xff, end - data)))
        if (*++data == 0xda && --most < 0) return true;
    return false;
}

static bool read_header(Job *job) {
    j_decompress_ptr jpeg = &job->jpeg;
    const uint8_t *data = job->data.buf;
    if (!ends_as_a_jpeg(data, job->data.len) || job->data.len > LONG_MAX ||
        has_scans_beyond(data, job->data.len, job->most_scans))
        return false;
    jpeg->err = jpeg_std_error(&job->errors);
    job->errors.error_exit = fail;
    job->errors.emit_message = on_message;
    job->errors.output_message = no_output;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, (uint8_t *)data, (unsigned long)job->data.len);
    jpeg_read_header(jpeg, TRUE);
    bool grey = jpeg->num_components == 1 && jpeg->jpeg_color_space == JCS_GRAYSCALE;
    bool colour = jpeg->num_components == 3 && (jpeg->jpeg_color_space == JCS_YCbCr ||
                                                jpeg->jpeg_color_space == JCS_RGB);
    bool lossy = jpeg->progressive_mode || (jpeg->Ss == 0 && jpeg->Se == DCTSIZE2 - 1);
    return (grey || colour) && lossy && jpeg->data_precision == 8 && !jpeg->arith_code &&
           (long long)jpeg->image_width * jpeg->image_height <= job->most_pixels;
}

/* False if scans are missing: how libjpeg fills the gaps depends on its version. */
static bool is_whole(j_decompress_ptr jpeg) {
    for (int c = 0; jpeg->progressive_mode && c < jpeg->num_components; c++)
        for (int i = 0; i < DCTSIZE2; i++)
            if (jpeg->coef_bits[c][i]) return false;
    return true;
}

static bool start(Job *job, J_COLOR_SPACE colours) {
    j_decompress_ptr jpeg = &job->jpeg;
    if (!read_header(job)) return false;
    if (job->resizer.channels == 1 && jpeg->num_components == 3) return false;
    jpeg->out_color_space = job->resizer.channels == 1 ? JCS_GRAYSCALE : colours;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(jpeg);
    return is_whole(jpeg);
}

static bool decode_all(Job *job) {
    j_decompress_ptr jpeg = &job->jpeg;
    if (!start(job, JCS_RGB)) return false;
    if (job->width != (int)jpeg->output_width || job->height != (int)jpeg->output_height)
        return false;
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW row = job->resizer.out +
                       (size_t)jpeg->output_scanline * job->width * job->resizer.channels;
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    return true;
}

/* Makes libjpeg skip what is left of, right of and above the box; returns the index of the first
   pixel of the box in the rows that it will give.

   An upsampled pixel depends on its chroma sample and the adjacent ones, so one more sample is
   decoded on the left and above. On the right it is a whole block: libjpeg upsamples rows of fewer
   than three samples in another way. */
static int skip_margins(Job *job) {
    j_decompress_ptr jpeg = &job->jpeg;
    int across = jpeg->max_h_samp_factor, down = jpeg->max_v_samp_factor;
    JDIMENSION left = job->left > across ? job->left - across : 0;
    JDIMENSION right = job->left + job->width + DCTSIZE * across, width;
    if (right > jpeg->output_width) right = jpeg->output_width;
    width = right - left;
    if (width < jpeg->output_width) jpeg_crop_scanline(jpeg, &left, &width);
    int block = DCTSIZE * down, skipped = (job->top - down) / block * block;
    if (skipped > 0 && jpeg_skip_scanlines(jpeg, skipped) != (JDIMENSION)skipped)
        fail((j_common_ptr)jpeg);
    return job->left - (int)left;
}

static bool decode_box(Job *job) {
    j_decompress_ptr jpeg = &job->jpeg;
    Resizer *resizer = &job->resizer;
    if (!start(job, JCS_EXT_RGBX)) return false;
    if (job->left > (int)jpeg->output_width - job->width ||
        job->top > (int)jpeg->output_height - job->height)
        return false;
    int left = skip_margins(job);
    if (!resizer_init(resizer, job->width, job->height, left, jpeg->output_width)) return false;
    while ((int)jpeg->output_scanline < job->top + job->height) {
        bool inside = (int)jpeg->output_scanline >= job->top;
        JSAMPROW row = resizer_row(resizer);
        jpeg_read_scanlines(jpeg, &row, 1);
        if (inside) resizer_push(resizer);
    }
    return true;
}

/* Calls `work`, which libjpeg may leave by longjmp. No variable of this frame changes meanwhile, as
   setjmp demands. */
static bool attempt(Job *job, bool (*work)(Job *)) {
    if (setjmp(job->failed)) return false;
    return work(job);
}

static bool run(Job *job, bool (*work)(Job *)) {
    bool ok;
    Py_BEGIN_ALLOW_THREADS;
    ok = attempt(job, work);
    jpeg_destroy_decompress(&job->jpeg);
    resizer_free(&job->resizer);
    Py_END_ALLOW_THREADS;
    return ok;
}

/* ---- The functions of the Python module ---- */

/* True for uint8 [H,W,1] or [H,W,3]; contiguous altogether, or else within each row. */
static bool is_picture(const Py_buffer *view, bool contiguous) {
    if (view->ndim != 3 || view->itemsize != 1) return false;
    for (int i = 0; i < 3; i++)
        if (view->shape[i] < 1 || view->shape[i] > 1 << 26) return false;
    Py_ssize_t channels = view->shape[2];
    if (channels != 1 && channels != 3) return false;
    if (contiguous) return PyBuffer_IsContiguous(view, 'C');
    return view->strides[2] == 1 && view->strides[1] == channels;
}

static bool set_out(Resizer *resizer, const Py_buffer *out) {
    if (!is_picture(out, true)) {
        PyErr_SetString(PyExc_ValueError, "out must be a contiguous uint8 [H,W,1] or [H,W,3]");
        return false;
    }
    resizer->out = out->buf;
    resizer->down.out = (int)out->shape[0];
    resizer->across.out = (int)out->shape[1];
    resizer->channels = (int)out->shape[2];
    return true;
}

static PyObject *py_size(PyObject *module, PyObject *args) {
    Job job = {0};
    if (!PyArg_ParseTuple(args, "y*(Li)", &job.data, &job.most_pixels, &job.most_scans)) return NULL;
    bool ok = run(&job, read_header);
    PyBuffer_Release(&job.data);
    if (!ok) Py_RETURN_NONE;
    return Py_BuildValue("III", job.jpeg.image_width, job.jpeg.image_height,
                         (unsigned)job.jpeg.num_components);
}

static PyObject *decode_into(PyObject *args, bool cropping) {
    Job job = {0};
    PyObject *target;
    Py_buffer out;
    int down_first = 0;
    if (!PyArg_ParseTuple(args, cropping ? "y*O(Li)(iiii)p" : "y*O(Li)", &job.data, &target,
                          &job.most_pixels, &job.most_scans, &job.left, &job.top, &job.width,
                          &job.height, &down_first))
        return NULL;
    if (PyObject_GetBuffer(target, &out, PyBUF_WRITABLE | PyBUF_STRIDES) < 0) {
        PyBuffer_Release(&job.data);
        return NULL;
    }
    bool ok = false, valid = set_out(&job.resizer, &out);
    job.resizer.down_first = down_first;
    if (!cropping) job.height = job.resizer.down.out, job.width = job.resizer.across.out;
    if (valid && job.left >= 0 && job.top >= 0 && job.width > 0 && job.height > 0)
        ok = run(&job, cropping ? decode_box : decode_all);
    PyBuffer_Release(&job.data);
    PyBuffer_Release(&out);
    return valid ? PyBool_FromLong(ok) : NULL;
}

static PyObject *py_crop(PyObject *module, PyObject *args) { return decode_into(args, true); }

static PyObject *py_decode(PyObject *module, PyObject *args) { return decode_into(args, false); }

static bool resize_picture(Resizer *self, const Py_buffer *pixels) {
    int height = (int)pixels->shape[0], width = (int)pixels->shape[1];
    if (!resizer_init(self, width, height, 0, width)) return false;
    for (int y = 0; y < height; y++) {
        const uint8_t *from = (const uint8_t *)pixels->buf + y * pixels->strides[0];
        uint8_t *to = resizer_row(self);
        if (self->channels == 1)
            memcpy(to, from, width);
        else
            for (int x = 0; x < width; x++) memcpy(to + 4 * x, from + 3 * x, 3);
        resizer_push(self);
    }
    return true;
}

static PyObject *py_resize(PyObject *module, PyObject *args) {
    PyObject *source, *target;
    Py_buffer pixels, out;
    Resizer resizer = {0};
    int down_first;
    if (!PyArg_ParseTuple(args, "OOp", &source, &target, &down_first)) return NULL;
    if (PyObject_GetBuffer(source, &pixels, PyBUF_STRIDES) < 0) return NULL;
    if (PyObject_GetBuffer(target, &out, PyBUF_WRITABLE | PyBUF_STRIDES) < 0) {
        PyBuffer_Release(&pixels);
        return NULL;
    }
    resizer.down_first = down_first;
    bool fits = set_out(&resizer, &out), ok = false;
    if (fits && (!is_picture(&pixels, false) || pixels.shape[2] != out.shape[2])) {
        PyErr_SetString(PyExc_ValueError, "pixels must be uint8 [h,w,C] with contiguous rows");
        fits = false;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS;
        ok = resize_picture(&resizer, &pixels);
        resizer_free(&resizer);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    if (!fits) return NULL;
    if (!ok) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"size", py_size, METH_VARARGS, "size(data, (most_pixels, most_scans)) -> (width, height, bands) or None"},
    {"crop", py_crop, METH_VARARGS,
     "crop(data, out, (most_pixels, most_scans), (left, top, width, height), down_first) -> "
     "whether out was filled"},
    {"decode", py_decode, METH_VARARGS,
     "decode(data, out, (most_pixels, most_scans)) -> whether out was filled"},
    {"resize", py_resize, METH_VARARGS, "resize(pixels, out, down_first)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_jpeg", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModuleDef_Init(&module); }
