// softlane._core: Python's arrays as views, the GIL released for the compute, C++ exceptions as Python's.
// The only file that knows Python. Arguments were validated by the package; a buffer that turns out not
// to be what was promised still gives an error, never a wrong access.
//
// The array functions are METH_FASTCALL: for small arrays pybind11's dispatcher would cost more than the
// rest of the call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "dispatch.h"
#include "fpenv.h"
#include "ops.h"
#include "parallel.h"

namespace py = pybind11;

namespace softlane {
namespace {

// Thrown when the Python error is already set.
struct PythonError {};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
constexpr bool kLittle = false;
#else
constexpr bool kLittle = true;
#endif

DType dtype_of(const Py_buffer& b, bool* swapped) {
  const char* format = b.format == nullptr ? "B" : b.format;
  *swapped = false;
  if (*format == '<') *swapped = !kLittle;
  if (*format == '>' || *format == '!') *swapped = kLittle;
  if (*format == '@' || *format == '=' || *format == '<' || *format == '>' || *format == '!') {
    ++format;
  }
  const char letter = *format;
  if (letter != '\0' && format[1] == '\0') {
    const std::string signed_letters = "bhilqn", unsigned_letters = "BHILQN";
    const auto pick = [&](DType one, DType two, DType four, DType eight) -> std::optional<DType> {
      switch (b.itemsize) {
        case 1:
          return one;
        case 2:
          return two;
        case 4:
          return four;
        case 8:
          return eight;
        default:
          return std::nullopt;
      }
    };
    std::optional<DType> type;
    if (signed_letters.find(letter) != std::string::npos) {
      type = pick(DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64);
    } else if (unsigned_letters.find(letter) != std::string::npos) {
      type = pick(DType::kUInt8, DType::kUInt16, DType::kUInt32, DType::kUInt64);
    } else if (letter == '?' && b.itemsize == 1) {
      type = DType::kBool;
    } else if (letter == 'e' && b.itemsize == 2) {
      type = DType::kFloat16;
    } else if (letter == 'f' && b.itemsize == 4) {
      type = DType::kFloat32;
    } else if (letter == 'd' && b.itemsize == 8) {
      type = DType::kFloat64;
    }
    if (type) return *type;
  }
  PyErr_Format(PyExc_TypeError, "buffer of format '%s' and item size %zd is not supported",
               b.format == nullptr ? "" : b.format, b.itemsize);
  throw PythonError();
}

// NumPy's own arrays are read where they are: to ask for a buffer costs as much as a small softmax, as
// NumPy spells the format out each time.
const py::detail::npy_api& numpy() { return py::detail::npy_api::get(); }

template <class T>
constexpr DType integer_of(DType one, DType two, DType four, DType eight) {
  return sizeof(T) == 1 ? one : sizeof(T) == 2 ? two : sizeof(T) == 4 ? four : eight;
}
template <class T>
constexpr DType kIntegerOf =
    std::is_signed<T>::value
        ? integer_of<T>(DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64)
        : integer_of<T>(DType::kUInt8, DType::kUInt16, DType::kUInt32, DType::kUInt64);

// The dtype of NumPy's type number, if it is one of ours.
std::optional<DType> dtype_of_number(int number) {
  constexpr DType kIntegers[] = {
      DType::kBool,
      kIntegerOf<signed char>,
      kIntegerOf<unsigned char>,
      kIntegerOf<short>,
      kIntegerOf<unsigned short>,
      kIntegerOf<int>,
      kIntegerOf<unsigned int>,
      kIntegerOf<long>,
      kIntegerOf<unsigned long>,
      kIntegerOf<long long>,
      kIntegerOf<unsigned long long>,
  };
  constexpr int kHalf = 23;  // has no name in pybind11
  if (number >= 0 && number <= py::detail::npy_api::NPY_ULONGLONG_) return kIntegers[number];
  if (number == py::detail::npy_api::NPY_FLOAT_) return DType::kFloat32;
  if (number == py::detail::npy_api::NPY_DOUBLE_) return DType::kFloat64;
  if (number == kHalf) return DType::kFloat16;
  return std::nullopt;
}

// An exact ndarray of one of our dtypes; anything else gives no value.
struct Array {
  const py::detail::PyArray_Proxy* proxy;
  DType dtype;
  bool swapped;

  static std::optional<Array> of(PyObject* object) {
    if (Py_TYPE(object) != numpy().PyArray_Type_) return std::nullopt;
    const auto* proxy = py::detail::array_proxy(object);
    const auto* descr = py::detail::array_descriptor_proxy(proxy->descr);
    const std::optional<DType> dtype = dtype_of_number(descr->type_num);
    if (!dtype) return std::nullopt;
    return Array{proxy, *dtype, descr->byteorder == (kLittle ? '>' : '<')};
  }
  bool has(int flags) const { return (proxy->flags & flags) == flags; }
  void fill(View& view) const {
    view.data = proxy->data;
    view.dtype = dtype;
    view.swapped = swapped;
    view.ndim = proxy->nd;  // NumPy has at most 64
    for (size_t d = 0; d < static_cast<size_t>(proxy->nd); ++d) {
      view.shape[d] = proxy->dimensions[d];
      view.strides[d] = proxy->strides[d];
    }
  }
};

// A buffer held for the length of a call.
class Buffer {
 public:
  Buffer(PyObject* object, bool writable, bool bfloat16) {
    const auto array = Array::of(object);
    if (array && (!writable || array->has(py::detail::npy_api::NPY_ARRAY_WRITEABLE_))) {
      array->fill(view_);
    } else {
      acquire(object, writable);
    }
    if (bfloat16 && view_.dtype == DType::kUInt16) view_.dtype = DType::kBFloat16;
  }
  ~Buffer() {
    if (acquired_) PyBuffer_Release(&buffer_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const View& view() const { return view_; }

 private:
  void acquire(PyObject* object, bool writable) {
    const int flags = writable ? PyBUF_FULL : PyBUF_FULL_RO;
    if (PyObject_GetBuffer(object, &buffer_, flags) != 0) throw PythonError();
    acquired_ = true;
    try {
      fill();
    } catch (...) {
      PyBuffer_Release(&buffer_);
      throw;
    }
  }
  void fill() {
    if (buffer_.suboffsets != nullptr) {
      for (int d = 0; d < buffer_.ndim; ++d) {
        if (buffer_.suboffsets[d] < 0) continue;
        PyErr_SetString(PyExc_BufferError, "buffers with suboffsets are not supported");
        throw PythonError();
      }
    }
    if (buffer_.ndim > kMaxDims) {
      PyErr_Format(PyExc_ValueError, "buffer has %d dimensions, expected at most %d", buffer_.ndim,
                   kMaxDims);
      throw PythonError();
    }
    check_extent();
    view_.data = static_cast<char*>(buffer_.buf);
    view_.dtype = dtype_of(buffer_, &view_.swapped);
    view_.ndim = buffer_.ndim;
    for (int d = 0; d < buffer_.ndim; ++d) {
      const auto i = static_cast<size_t>(d);
      view_.shape[i] = buffer_.shape[d];
    }
    // Exporters of contiguous memory may leave the strides out.
    ptrdiff_t step = buffer_.itemsize;
    for (int d = buffer_.ndim; d-- > 0;) {
      const auto i = static_cast<size_t>(d);
      view_.strides[i] = buffer_.strides != nullptr ? buffer_.strides[d] : step;
      step *= view_.shape[i];
    }
  }
  // The lengths must make up what the exporter says it has: a lie here would be read past the end.
  void check_extent() const {
    Py_ssize_t bytes = buffer_.itemsize;
    bool sound = bytes > 0 && (buffer_.ndim == 0 || buffer_.shape != nullptr) &&
                 (buffer_.format != nullptr || bytes == 1);
    bool empty = false;
    for (int d = 0; sound && d < buffer_.ndim; ++d) {
      sound = buffer_.shape[d] >= 0;
      empty = empty || buffer_.shape[d] == 0;
    }
    for (int d = 0; sound && !empty && d < buffer_.ndim; ++d) {
      sound = bytes <= PY_SSIZE_T_MAX / buffer_.shape[d];
      if (sound) bytes *= buffer_.shape[d];
    }
    if (sound && (empty ? 0 : bytes) == buffer_.len) return;
    PyErr_SetString(PyExc_BufferError,
                    "the buffer's shape and item size do not agree with its length");
    throw PythonError();
  }
  Py_buffer buffer_;
  bool acquired_ = false;
  View view_;
};

using MaybeBuffer = std::optional<Buffer>;

const View* hold(MaybeBuffer& buffer, PyObject* object, bool writable, bool bfloat16) {
  if (object == Py_None) return nullptr;
  buffer.emplace(object, writable, bfloat16);
  return &buffer->view();
}

// The promises of the Python layer that memory safety depends on.
void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}
bool has_shape(const View& a, const View& b) {
  return a.ndim == b.ndim && std::equal(a.shape.begin(), a.shape.begin() + a.ndim, b.shape.begin());
}
void require_shape(const View& a, const View& b, const char* what) {
  require(has_shape(a, b), what);
}
// Whether `reduced` has the shape of `full` without the axes.
bool has_reduced_shape(const View& full, uint64_t axes, const View& reduced) {
  int at = 0;
  for (int d = 0; d < full.ndim; ++d) {
    if ((axes >> d) & 1) continue;
    if (at == reduced.ndim) return false;
    if (reduced.shape[static_cast<size_t>(at)] != full.shape[static_cast<size_t>(d)]) return false;
    ++at;
  }
  return at == reduced.ndim;
}
void require_reduced(const View& full, uint64_t axes, const View& reduced, const char* what) {
  require(has_reduced_shape(full, axes, reduced), what);
}

double as_double(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value == -1.0 && PyErr_Occurred() != nullptr) throw PythonError();
  return value;
}
long long as_integer(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred() != nullptr) throw PythonError();
  return value;
}
uint64_t as_axes(PyObject* object, int ndim) {
  require(PyTuple_Check(object), "axes must be a tuple");
  uint64_t axes = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i) {
    const long long axis = as_integer(PyTuple_GET_ITEM(object, i));
    require(axis >= 0 && axis < ndim, "axis out of range");
    axes |= uint64_t{1} << axis;
  }
  return axes;
}

// Small work is done before another thread would have got the GIL.
constexpr size_t kKeepGil = 4096;

// Gives the GIL up, and takes it again at the end. CPython before 3.14 ends a daemon thread that wants the GIL after
// the interpreter's end by unwinding its stack: through destructors that need the GIL, or into std::terminate. Such
// a thread waits here for the end of the process, as in 3.14.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

// Runs f without the GIL, and with default rounding.
template <class F>
auto compute(size_t elements, F f) {
  std::optional<ReleasedGil> released;
  if (elements > kKeepGil) released.emplace();
  const DefaultFpEnvironment environment;
  return f();
}

constexpr int kPlainLayout =
    py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

// The arrays that most calls are made with: ndarrays of a plain floating dtype, C-contiguous, with an int
// for the axis. Everything else gives no value, and is for the general path.
struct Plain {
  Array array;
  int axis;
  size_t elements;

  static std::optional<Plain> of(PyObject* object, PyObject* axis) {
    const auto array = Array::of(object);
    if (!array || !is_floating(array->dtype) || array->swapped || !PyLong_CheckExact(axis) ||
        !array->has(kPlainLayout)) {
      return std::nullopt;
    }
    int overflow = 0;
    const long given = PyLong_AsLongAndOverflow(axis, &overflow);
    const int ndim = array->proxy->nd;
    if (overflow != 0 || given < -ndim || given >= ndim) return std::nullopt;
    const int place = static_cast<int>(given < 0 ? given + ndim : given);
    size_t elements = 1;
    for (int d = 0; d < ndim; ++d) elements *= static_cast<size_t>(array->proxy->dimensions[d]);
    return Plain{*array, place, elements};
  }
  bool last() const { return axis == array.proxy->nd - 1; }
  size_t length() const { return static_cast<size_t>(array.proxy->dimensions[axis]); }
};

// An array of the shape and dtype of `x` for results: a new one, or `out` where that is plain, too, and no part of it
// overlaps another part of x; else null.
py::object plain_output(const Plain& x, PyObject* out) {
  const auto* proxy = x.array.proxy;
  if (out == Py_None) {
    Py_INCREF(proxy->descr);  // taken over by the new array
    PyObject* array =
        numpy().PyArray_NewFromDescr_(numpy().PyArray_Type_, proxy->descr, proxy->nd,
                                      proxy->dimensions, nullptr, nullptr, 0, nullptr);
    if (array == nullptr) throw PythonError();
    return py::reinterpret_steal<py::object>(array);
  }
  const auto to = Array::of(out);
  constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  if (!to || !to->has(kPlainLayout | kWriteable) || to->dtype != x.array.dtype || to->swapped ||
      to->proxy->nd != proxy->nd ||
      !std::equal(proxy->dimensions, proxy->dimensions + proxy->nd, to->proxy->dimensions)) {
    return {};
  }
  const auto first = reinterpret_cast<uintptr_t>(to->proxy->data);
  const auto second = reinterpret_cast<uintptr_t>(proxy->data);
  const size_t distance = first < second ? second - first : first - second;
  if (distance != 0 && distance < x.elements * item_size(x.array.dtype)) return {};
  return py::reinterpret_borrow<py::object>(out);
}

// A temperature that is plain: a float, finite and above 0.
std::optional<double> plain_temperature(PyObject* object) {
  const double value = PyFloat_CheckExact(object) ? PyFloat_AS_DOUBLE(object) : 0;
  if (!(value > 0 && value <= std::numeric_limits<double>::max())) return std::nullopt;
  return value;
}

// (x, axis, log, temperature, out): softmax into a new array or `out`, or None where the general path has to see
// to it.
PyObject* plain_softmax_call(PyObject* const* a) {
  const auto plain = Plain::of(a[0], a[1]);
  const auto temperature = plain_temperature(a[3]);
  if (!plain || !temperature) Py_RETURN_NONE;
  const Array& x = plain->array;
  const bool log = a[2] == Py_True;
  const py::object out = plain_output(*plain, a[4]);
  if (!out) Py_RETURN_NONE;
  if (plain->elements == 0) return out.inc_ref().ptr();
  char* to = py::detail::array_proxy(out.ptr())->data;
  if (*temperature == 1 && plain->last() && plain->elements <= kKeepGil) {
    const DefaultFpEnvironment environment;
    softmax_rows(x.proxy->data, to, x.dtype, plain->elements / plain->length(), plain->length(),
                 log);
    return out.inc_ref().ptr();
  }
  View from, into;
  x.fill(from);
  into = from;
  into.data = to;
  compute(plain->elements,
          [&] { softmax(from, into, uint64_t{1} << plain->axis, nullptr, *temperature, log); });
  return out.inc_ref().ptr();
}

py::object descr_of(bool wide) {
  PyObject* descr = numpy().PyArray_DescrFromType_(wide ? py::detail::npy_api::NPY_DOUBLE_
                                                        : py::detail::npy_api::NPY_FLOAT_);
  if (descr == nullptr) throw PythonError();
  return py::reinterpret_steal<py::object>(descr);
}
// A NumPy scalar of the double, or float, that lies at `value`.
py::object scalar(char* value, bool wide) {
  PyObject* result = numpy().PyArray_Scalar_(value, descr_of(wide).ptr(), nullptr);
  if (result == nullptr) throw PythonError();
  return py::reinterpret_steal<py::object>(result);
}

// A new array of the view's shape, which the view then shows.
py::object new_array(bool wide, View& view) {
  PyObject* result =
      numpy().PyArray_NewFromDescr_(numpy().PyArray_Type_, descr_of(wide).release().ptr(),
                                    view.ndim, view.shape.data(), nullptr, nullptr, 0, nullptr);
  if (result == nullptr) throw PythonError();
  Array::of(result)->fill(view);
  return py::reinterpret_steal<py::object>(result);
}

// (x, axis): logsumexp as an array or a scalar, or None where the general path has to see to it.
PyObject* plain_logsumexp_call(PyObject* const* a) {
  const auto plain = Plain::of(a[0], a[1]);
  if (!plain) Py_RETURN_NONE;
  const Array& x = plain->array;
  View from, into;
  x.fill(from);
  into.ndim = 0;
  for (int d = 0; d < from.ndim; ++d) {
    if (d == plain->axis) continue;
    into.shape[static_cast<size_t>(into.ndim++)] = from.shape[static_cast<size_t>(d)];
  }
  const bool wide = x.dtype == DType::kFloat64;
  into.dtype = wide ? DType::kFloat64 : DType::kFloat32;
  const uint64_t axes = uint64_t{1} << plain->axis;
  if (into.ndim == 0) {
    alignas(double) char value[sizeof(double)];
    into.data = value;
    compute(plain->elements, [&] { logsumexp(from, into, nullptr, axes, nullptr, nullptr); });
    return scalar(value, wide).release().ptr();
  }
  const py::object out = new_array(wide, into);
  compute(plain->elements, [&] { logsumexp(from, into, nullptr, axes, nullptr, nullptr); });
  return out.inc_ref().ptr();
}

std::optional<Reduction> plain_reduction(PyObject* object) {
  if (!PyUnicode_CheckExact(object)) return std::nullopt;
  const auto is = [=](const char* name) {
    return PyUnicode_CompareWithASCIIString(object, name) == 0;
  };
  if (is("mean")) return Reduction::kMean;
  if (is("none")) return Reduction::kNone;
  if (is("sum")) return Reduction::kSum;
  return std::nullopt;
}

// (logits, targets, axis, label_smoothing, temperature, reduction, with_grad): the loss of integer targets, or that
// and its gradient; None where the general path has to see to it.
PyObject* plain_cross_entropy_call(PyObject* const* a) {
  const auto plain = Plain::of(a[0], a[2]);
  const auto targets = Array::of(a[1]);
  const double smoothing = PyFloat_CheckExact(a[3]) ? PyFloat_AS_DOUBLE(a[3]) : -1;
  const auto temperature = plain_temperature(a[4]);
  const auto reduction = plain_reduction(a[5]);
  if (!plain || !targets || is_floating(targets->dtype) || targets->dtype == DType::kBool ||
      !(smoothing >= 0 && smoothing <= 1) || !temperature || !reduction) {
    Py_RETURN_NONE;
  }
  // Losses are laid out as the targets.
  if (*reduction == Reduction::kNone && !targets->has(kPlainLayout)) Py_RETURN_NONE;
  CrossEntropyArgs args;
  args.label_smoothing = smoothing;
  args.temperature = *temperature;
  args.reduction = *reduction;
  plain->array.fill(args.logits);
  targets->fill(args.targets);
  args.axis = plain->axis;
  if (!has_reduced_shape(args.logits, uint64_t{1} << plain->axis, args.targets)) Py_RETURN_NONE;
  const bool wide = args.logits.dtype == DType::kFloat64;
  alignas(double) char value[sizeof(double)];
  View loss, gradients;
  loss.data = value;
  loss.dtype = wide ? DType::kFloat64 : DType::kFloat32;
  args.loss = &loss;
  py::object losses, grad;
  if (args.reduction == Reduction::kNone && args.targets.ndim > 0) {
    loss.ndim = args.targets.ndim;
    loss.shape = args.targets.shape;
    losses = new_array(wide, loss);
  }
  if (a[6] == Py_True) {
    grad = plain_output(*plain, Py_None);
    Array::of(grad.ptr())->fill(gradients);
    args.grad = &gradients;
  }
  compute(plain->elements, [&] { cross_entropy(args); });
  if (!losses) losses = scalar(value, wide);
  if (!grad) return losses.release().ptr();
  return py::make_tuple(losses, grad).release().ptr();
}

// (grad_output, output, axis, log, temperature): the gradient in a new array, or None where the general path has to
// see to it.
PyObject* plain_backward_call(PyObject* const* a) {
  const auto grad = Plain::of(a[0], a[2]), output = Plain::of(a[1], a[2]);
  const auto temperature = plain_temperature(a[4]);
  if (!grad || !output || !temperature || grad->array.dtype != output->array.dtype) {
    Py_RETURN_NONE;
  }
  View g, y, into;
  grad->array.fill(g);
  output->array.fill(y);
  if (!has_shape(g, y)) Py_RETURN_NONE;
  const py::object out = plain_output(*grad, Py_None);
  Array::of(out.ptr())->fill(into);
  const bool log = a[3] == Py_True;
  compute(grad->elements,
          [&] { softmax_backward(g, y, into, uint64_t{1} << grad->axis, *temperature, log); });
  return out.inc_ref().ptr();
}

PyObject* softmax_call(PyObject* const* a) {
  const long long bf16 = as_integer(a[6]);
  const Buffer x(a[0], false, (bf16 & 1) != 0), out(a[1], true, (bf16 & 2) != 0);
  MaybeBuffer where;
  const View* mask = hold(where, a[3], false, false);
  const uint64_t axes = as_axes(a[2], x.view().ndim);
  const double temperature = as_double(a[4]);
  const bool log = a[5] == Py_True;
  require_shape(x.view(), out.view(), "out must have the shape of x");
  require(is_floating(out.view().dtype), "out must be floating");
  if (mask != nullptr) require_shape(x.view(), *mask, "where must have the shape of x");
  compute(x.view().size(), [&] { softmax(x.view(), out.view(), axes, mask, temperature, log); });
  Py_RETURN_NONE;
}

PyObject* logsumexp_call(PyObject* const* a) {
  const long long bf16 = as_integer(a[6]);
  const Buffer x(a[0], false, (bf16 & 1) != 0), out(a[1], true, (bf16 & 4) != 0);
  MaybeBuffer sign_buffer, b_buffer, where_buffer;
  const View* sign = hold(sign_buffer, a[2], true, false);
  const View* b = hold(b_buffer, a[4], false, (bf16 & 2) != 0);
  const View* where = hold(where_buffer, a[5], false, false);
  const uint64_t axes = as_axes(a[3], x.view().ndim);
  require_reduced(x.view(), axes, out.view(), "out must have the shape of the result");
  require(is_floating(out.view().dtype), "out must be floating");
  if (sign != nullptr) {
    require_reduced(x.view(), axes, *sign, "sign must have the shape of the result");
    require(is_floating(sign->dtype), "sign must be floating");
  }
  if (b != nullptr) require_shape(x.view(), *b, "b must have the shape of x");
  if (where != nullptr) require_shape(x.view(), *where, "where must have the shape of x");
  compute(x.view().size(), [&] { logsumexp(x.view(), out.view(), sign, axes, b, where); });
  Py_RETURN_NONE;
}

PyObject* cross_entropy_call(PyObject* const* a) {
  const long long bf16 = as_integer(a[12]);
  const Buffer logits(a[0], false, (bf16 & 1) != 0), targets(a[1], false, (bf16 & 32) != 0);
  MaybeBuffer weight, sample_weight, where, loss, grad, stats[4];
  CrossEntropyArgs args;
  args.logits = logits.view();
  args.targets = targets.view();
  const long long axis = as_integer(a[2]);
  require(axis >= 0 && axis < args.logits.ndim, "axis out of range");
  args.axis = static_cast<int>(axis);
  args.weight = hold(weight, a[3], false, (bf16 & 4) != 0);
  args.sample_weight = hold(sample_weight, a[4], false, (bf16 & 8) != 0);
  args.ignore_index = as_integer(a[5]);
  args.label_smoothing = as_double(a[6]);
  args.temperature = as_double(a[7]);
  args.where = hold(where, a[8], false, false);
  args.reduction = static_cast<Reduction>(as_integer(a[9]));
  args.loss = hold(loss, a[10], true, (bf16 & 16) != 0);
  args.grad = hold(grad, a[11], true, (bf16 & 2) != 0);
  const uint64_t axes = uint64_t{1} << axis;
  if (is_floating(args.targets.dtype)) {
    require_shape(args.logits, args.targets, "probabilities must have the shape of logits");
  } else {
    require_reduced(args.logits, axes, args.targets, "targets must have the shape of the losses");
  }
  args.z_loss = as_double(a[13]);
  args.softcap = as_double(a[14]);
  if (a[15] != Py_None) {
    require(PyTuple_Check(a[15]) && PyTuple_GET_SIZE(a[15]) == 4, "stats must be four arrays");
    for (int k = 0; k < 4; ++k) {
      const auto i = static_cast<size_t>(k);
      args.stats[i] = hold(stats[i], PyTuple_GET_ITEM(a[15], k), true, false);
      require(args.stats[i] != nullptr, "stats must be four arrays");
      require_reduced(args.logits, axes, *args.stats[i], "stats must have the shape of the losses");
      const DType type = args.stats[i]->dtype;
      require(k < 3 ? is_floating(type) : type == DType::kBool, "stats have a wrong dtype");
    }
  }
  if (args.weight != nullptr) {
    require(args.weight->ndim == 1 &&
                args.weight->shape[0] == args.logits.shape[static_cast<size_t>(axis)],
            "weight must have one element a class");
  }
  if (args.sample_weight != nullptr) {
    require_reduced(args.logits, axes, *args.sample_weight, "sample_weight has a wrong shape");
  }
  if (args.where != nullptr) require_shape(args.logits, *args.where, "where has a wrong shape");
  require(args.loss != nullptr && is_floating(args.loss->dtype), "loss must be floating");
  if (args.reduction == Reduction::kNone) {
    require_reduced(args.logits, axes, *args.loss, "loss must have the shape of the targets");
  } else {
    require(args.loss->ndim == 0, "a reduced loss has no dimensions");
  }
  if (args.grad != nullptr) {
    require_shape(args.logits, *args.grad, "grad must have the shape of logits");
    require(is_floating(args.grad->dtype), "grad must be floating");
  }
  compute(args.logits.size(), [&] { cross_entropy(args); });
  Py_RETURN_NONE;
}

PyObject* exp_sums_call(PyObject* const* a) {
  const Buffer x(a[0], false, as_integer(a[3]) != 0), states(a[1], true, false);
  const uint64_t axes = as_axes(a[2], x.view().ndim);
  View rows = states.view();
  require(rows.ndim > 0 && rows.dtype == DType::kFloat64, "states must be double");
  const auto last = static_cast<size_t>(--rows.ndim);
  require(rows.shape[last] == 4 && rows.strides[last] == sizeof(double) && rows.aligned(),
          "states must have a last axis of 4");
  require_reduced(x.view(), axes, rows, "states must have the shape of the result");
  compute(x.view().size(), [&] { exp_sums(x.view(), states.view(), axes); });
  Py_RETURN_NONE;
}

PyObject* log_of_sums_call(PyObject* const* a) {
  const auto states = py::array_t<double, py::array::c_style>::ensure(py::handle(a[0]));
  require(states && states.ndim() > 0 && states.shape(states.ndim() - 1) == 4,
          "states must end in 4");
  const std::vector<py::ssize_t> shape(states.shape(), states.shape() + states.ndim() - 1);
  py::array_t<double> out(shape);
  compute(static_cast<size_t>(out.size()),
          [&] { log_of_sums(states.data(), out.mutable_data(), static_cast<size_t>(out.size())); });
  return out.release().ptr();
}

// The pointers of segments, copied: another thread could change them after the check.
std::vector<int64_t> as_pointers(const View& v, ptrdiff_t length) {
  require(v.ndim == 1 && v.shape[0] > 0 && !is_floating(v.dtype), "pointers must be integers");
  std::vector<int64_t> pointers(static_cast<size_t>(v.shape[0]));
  load_ints(v.data, v.strides[0], v.dtype, v.swapped, pointers.data(), pointers.size());
  for (size_t i = 0; i < pointers.size(); ++i) {
    const int64_t p = pointers[i];
    const int64_t before = i == 0 ? 0 : pointers[i - 1];
    if (i == 0 ? p != 0 : p < before) {
      throw std::invalid_argument(
          "indptr[" + std::to_string(i) + "] is " + std::to_string(p) +
          (i == 0 ? std::string(", expected 0")
                  : ", expected at least " + std::to_string(before) + ", the one before it"));
    }
  }
  if (pointers.back() != length) {
    const char* last = v.data + (v.shape[0] - 1) * v.strides[0];
    const std::string given = v.dtype == DType::kUInt64
                                  ? std::to_string(load_unsigned(last, v.swapped))
                                  : std::to_string(pointers.back());
    throw std::invalid_argument("indptr ends in " + given + ", expected the length of x, " +
                                std::to_string(length));
  }
  return pointers;
}

// (x, indptr, out, log, bf16): log is None for logsumexp.
PyObject* segments_call(PyObject* const* a) {
  const long long bf16 = as_integer(a[4]);
  const Buffer x(a[0], false, (bf16 & 1) != 0), indptr(a[1], false, false),
      out(a[2], true, (bf16 & 2) != 0);
  require(x.view().ndim == 1 && out.view().ndim == 1, "x and out must have one dimension");
  require(is_floating(out.view().dtype), "out must be floating");
  const std::vector<int64_t> pointers = as_pointers(indptr.view(), x.view().shape[0]);
  const size_t length = a[3] == Py_None ? pointers.size() - 1 : x.view().size();
  require(out.view().size() == length, "out has a wrong length");
  compute(x.view().size() + pointers.size(), [&] {
    if (a[3] == Py_None) {
      segment_logsumexp(x.view(), out.view(), pointers);
    } else {
      segment_softmax(x.view(), out.view(), pointers, a[3] == Py_True);
    }
  });
  Py_RETURN_NONE;
}

PyObject* softmax_backward_call(PyObject* const* a) {
  const long long bf16 = as_integer(a[6]);
  const Buffer grad(a[0], false, (bf16 & 1) != 0), output(a[1], false, (bf16 & 2) != 0),
      out(a[2], true, (bf16 & 4) != 0);
  const uint64_t axes = as_axes(a[3], out.view().ndim);
  const double temperature = as_double(a[4]);
  const bool log = a[5] == Py_True;
  require_shape(grad.view(), output.view(), "output must have the shape of grad_output");
  require_shape(grad.view(), out.view(), "out must have the shape of grad_output");
  require(is_floating(out.view().dtype), "out must be floating");
  compute(out.view().size(), [&] {
    softmax_backward(grad.view(), output.view(), out.view(), axes, temperature, log);
  });
  Py_RETURN_NONE;
}

// A METH_FASTCALL function of exactly kCount arguments, with C++ exceptions made Python's.
template <PyObject* (*kCall)(PyObject* const*), Py_ssize_t kCount>
PyObject* fastcall(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != kCount) {
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", kCount, count);
    return nullptr;
  }
  try {
    return kCall(arguments);
  } catch (const PythonError&) {
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::out_of_range& e) {
    PyErr_SetString(PyExc_IndexError, e.what());
  } catch (const std::invalid_argument& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

template <PyObject* (*kCall)(PyObject* const*), Py_ssize_t kCount>
PyMethodDef method(const char* name, const char* doc) {
  PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t) = fastcall<kCall, kCount>;
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, doc};
}

PyMethodDef methods[] = {
    method<plain_softmax_call, 5>("plain_softmax", "(x, axis, log, temperature, out)"),
    method<plain_logsumexp_call, 2>("plain_logsumexp", "(x, axis)"),
    method<plain_cross_entropy_call, 7>(
        "plain_cross_entropy",
        "(logits, targets, axis, label_smoothing, temperature, reduction, with_grad)"),
    method<plain_backward_call, 5>("plain_backward",
                                   "(grad_output, output, axis, log, temperature)"),
    method<softmax_call, 7>("softmax", "(x, out, axes, where, temperature, log, bf16)"),
    method<logsumexp_call, 7>("logsumexp", "(x, out, sign, axes, b, where, bf16)"),
    method<cross_entropy_call, 16>(
        "cross_entropy",
        "(logits, targets, axis, weight, sample_weight, ignore_index, label_smoothing, temperature,\n"
        "where, reduction, loss, grad, bf16, z_loss, softcap, stats)"),
    method<softmax_backward_call, 7>("softmax_backward",
                                     "(grad_output, output, out, axes, temperature, log, bf16)"),
    method<exp_sums_call, 4>("exp_sums", "(x, states, axes, bf16)"),
    method<log_of_sums_call, 1>("log_of_sums", "(states)"),
    method<segments_call, 5>("segments", "(x, indptr, out, log, bf16)"),
    {nullptr, nullptr, 0, nullptr},
};

// An elementary function of the active instruction set, element by element: for the tests.
template <class T, class Table>
py::array elementary_of(const Table& functions, size_t which, const py::array& x) {
  const auto in = py::array_t<T, py::array::c_style>::ensure(x);
  py::array_t<T> out(in.size());
  functions[which](in.data(), out.mutable_data(), static_cast<size_t>(in.size()));
  return out;
}

py::array elementary(const std::string& name, const py::array& x) {
  const char* names[] = {"exp", "log", "expm1", "log1p"};
  for (size_t i = 0; i < 4; ++i) {
    if (name != names[i]) continue;
    const DefaultFpEnvironment environment;
    if (x.dtype().kind() == 'f' && x.itemsize() == 4) {
      return elementary_of<float>(active_table().elementary_f32, i, x);
    }
    if (x.dtype().kind() == 'f' && x.itemsize() == 8) {
      return elementary_of<double>(active_table().elementary_f64, i, x);
    }
    throw std::invalid_argument("expected a float32 or float64 array");
  }
  throw std::invalid_argument("unknown elementary function '" + name + "'");
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

}  // namespace
}  // namespace softlane

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace softlane;
  m.doc() = "The compiled kernels. Use the functions of softlane, which validate their arguments.";
  m.attr("__version__") = SOFTLANE_VERSION;
  numpy();  // an import that fails should fail here
  try {
    active_table();
  } catch (const std::runtime_error& e) {
    throw py::import_error(e.what());
  }
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads);
  m.def("set_thread_limit", &set_thread_limit);
  m.def("isas_compiled", &isas_compiled);
  m.def("isas_usable", &isas_usable);
  m.def("get_isa", [] { return std::string(active_table().name); });
  m.def("set_isa", &set_active);
  m.def("compiler", &compiler);
  m.def("elementary", &elementary);
}
