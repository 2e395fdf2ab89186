// The module as a table of contents, and how the core's errors become Python's.
#include "bind.hpp"
#include "logitfuse/error.hpp"

namespace py = pybind11;
using namespace logitfuse;

namespace {

#if defined(_MSC_VER)
constexpr char kCompiler[] = "MSVC";
#elif defined(__clang__)
constexpr char kCompiler[] = __VERSION__;  // begins with "Clang" or a vendor's name for it
#else
constexpr char kCompiler[] = "GCC " __VERSION__;
#endif

// The typed errors live in Python, where they carry data; see python/logitfuse/errors.py.
void raise(const char* name, const std::string& what, const py::dict& data = {}) {
  const py::object type = py::module_::import("logitfuse.errors").attr(name);
  const py::object error = type(what, **data);
  PyErr_SetObject(type.ptr(), error.ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const VocabError& error) {
    raise("VocabError", error.what());
  } catch (const FusionError& error) {
    py::dict data;
    if (error.member != FusionError::kNoMember) data["member"] = error.member;
    raise("FusionError", error.what(), data);
  }
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The native core of logitfuse; private, use the package's public names.";
  m.attr("__version__") = LOGITFUSE_VERSION;
  m.attr("__compiler__") = kCompiler;
  py::register_local_exception_translator(&translate);
  bind_kernels(m);
  bind_vocab(m);
  bind_alignment(m);
  bind_pool(m);
  bind_fitting(m);
  bind_sampling(m);
  bind_bytes(m);
}
