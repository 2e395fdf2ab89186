// pybind11 only: checks shape and dtype, drops the GIL, calls the core.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "logitfuse/alignment.hpp"
#include "logitfuse/error.hpp"
#include "logitfuse/kernels.hpp"
#include "logitfuse/pool.hpp"
#include "logitfuse/prefix_mass.hpp"
#include "logitfuse/sampling.hpp"
#include "logitfuse/vocab.hpp"

namespace py = pybind11;
using namespace py::literals;
using namespace logitfuse;

namespace {

using Row = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Rows = std::vector<const float*>;

// The C functions of libllama that describe a vocabulary, called without linking against it.
// llama_token_attr bits, llama.h.
constexpr int kAttrUnknown = 1, kAttrUnused = 2, kAttrControl = 8, kAttrByte = 32;
// Stands in a piece for each character of a byte-level BPE token that is no byte.  Such a token has
// no bytes, and no text is ever tokenised to it (command-r has 1403).
constexpr std::string_view kNoByte = "[UNK_BYTE_0x";
using TokenToPiece = std::int32_t (*)(const void*, std::int32_t, char*, std::int32_t, std::int32_t,
                                      bool);
using TokenAttr = int (*)(const void*, std::int32_t);
using TokenIsEog = bool (*)(const void*, std::int32_t);

TokenKind kind_of(int attr, bool ends) {
  if (ends) return TokenKind::end;
  if ((attr & kAttrUnused) != 0) return TokenKind::unused;
  if ((attr & (kAttrControl | kAttrUnknown)) != 0) return TokenKind::control;
  return (attr & kAttrByte) != 0 ? TokenKind::byte : TokenKind::text;
}

std::shared_ptr<Vocab> vocab_from_llama(std::uintptr_t handle, std::int32_t n,
                                        std::uintptr_t piece_function,
                                        std::uintptr_t attr_function,
                                        std::uintptr_t eog_function) {
  const auto* vocab = reinterpret_cast<const void*>(handle);
  const auto piece = reinterpret_cast<TokenToPiece>(piece_function);
  const auto attr = reinterpret_cast<TokenAttr>(attr_function);
  const auto eog = reinterpret_cast<TokenIsEog>(eog_function);
  std::string blob, bytes(64, '\0');
  std::vector<std::int64_t> offsets{0};
  std::vector<TokenKind> kinds;
  blob.reserve(static_cast<std::size_t>(n) * 8);
  for (std::int32_t id = 0; id < n; ++id) {
    const auto room = [&] { return static_cast<std::int32_t>(bytes.size()); };
    std::int32_t length = piece(vocab, id, bytes.data(), room(), 0, true);
    if (length < 0) {  // the size it needs
      bytes.resize(static_cast<std::size_t>(-length));
      length = piece(vocab, id, bytes.data(), room(), 0, true);
    }
    if (length < 0) throw VocabError("llama.cpp gives no bytes for token " + std::to_string(id));
    std::string_view spelled(bytes.data(), static_cast<std::size_t>(length));
    if (spelled.find(kNoByte) != spelled.npos) spelled = {};  // and thus unused
    blob.append(spelled);
    offsets.push_back(static_cast<std::int64_t>(blob.size()));
    kinds.push_back(kind_of(attr(vocab, id), eog(vocab, id)));
  }
  return std::make_shared<Vocab>(std::move(blob), std::move(offsets), std::move(kinds));
}

std::shared_ptr<Vocab> make_vocab(const py::bytes& blob,
                                  const py::array_t<std::int64_t, py::array::c_style>& offsets,
                                  const py::array_t<std::uint8_t, py::array::c_style>& kinds) {
  std::vector<TokenKind> token_kinds;
  for (py::ssize_t i = 0; i < kinds.size(); ++i) {
    if (kinds.data()[i] > static_cast<std::uint8_t>(TokenKind::unused)) {
      throw VocabError("token " + std::to_string(i) + " has the unknown kind " +
                       std::to_string(kinds.data()[i]));
    }
    token_kinds.push_back(static_cast<TokenKind>(kinds.data()[i]));
  }
  return std::make_shared<Vocab>(
      std::string(blob), std::vector<std::int64_t>(offsets.data(), offsets.data() + offsets.size()),
      std::move(token_kinds));
}

template <typename T>
py::array_t<T> copy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// A view that keeps its owner alive.
Ints view(std::span<const std::int32_t> values, const py::object& owner) {
  Ints array(static_cast<py::ssize_t>(values.size()), values.data(), owner);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

void check_token(const Vocab& vocab, std::int32_t id) {
  if (id < 0 || id >= vocab.size()) {
    throw py::index_error("token " + std::to_string(id) + " is not in a vocabulary of " +
                          std::to_string(vocab.size()));
  }
}

void check_symbol(const Alignment& alignment, std::int32_t symbol) {
  if (symbol < 0 || symbol >= alignment.size()) {
    throw py::index_error("symbol " + std::to_string(symbol) + " is not in a union of " +
                          std::to_string(alignment.size()));
  }
}

void check_member(const Alignment& alignment, std::size_t member) {
  if (member >= alignment.members()) {
    throw py::index_error("member " + std::to_string(member) + " is not among " +
                          std::to_string(alignment.members()));
  }
}

const float* row_data(const py::handle& row, const Vocab& vocab, std::size_t m, py::ssize_t ndim) {
  if (!py::isinstance<Row>(row)) {
    throw py::type_error("the row of member " + std::to_string(m) +
                         " must be a C-contiguous float32 array; convert it with "
                         "numpy.ascontiguousarray(row, numpy.float32)");
  }
  const auto array = py::reinterpret_borrow<Row>(row);
  if (array.ndim() != ndim || array.shape(ndim - 1) != vocab.size()) {
    const std::string shape = py::str(array.attr("shape"));
    throw FusionError("the row of member " + std::to_string(m) + " has shape " + shape +
                          "; its vocabulary has " + std::to_string(vocab.size()) + " tokens",
                      static_cast<int>(m));
  }
  return array.data();
}

Rows row_pointers(const py::sequence& rows, const Alignment& alignment) {
  if (rows.size() != alignment.members()) {
    throw FusionError("expected " + std::to_string(alignment.members()) + " rows, got " +
                      std::to_string(rows.size()));
  }
  Rows pointers;
  for (std::size_t m = 0; m < rows.size(); ++m) {
    const py::object row = rows[m];
    pointers.push_back(row.is_none() ? nullptr : row_data(row, alignment.vocab(m), m, 1));
  }
  return pointers;
}

// Many steps at once: rows[m] is [steps, vocab m].
std::vector<Fused> fuse_steps(Pool& pool, const py::sequence& rows,
                              const std::vector<double>& weights, std::int32_t top,
                              const py::object& dense) {
  const Alignment& alignment = pool.alignment();
  if (rows.size() != alignment.members() || rows.size() == 0) {
    throw FusionError("expected " + std::to_string(alignment.members()) + " blocks of rows, got " +
                      std::to_string(rows.size()));
  }
  Rows blocks;
  py::ssize_t steps = -1;
  for (std::size_t m = 0; m < rows.size(); ++m) {
    const py::object block = rows[m];
    blocks.push_back(row_data(block, alignment.vocab(m), m, 2));
    const py::ssize_t n = py::reinterpret_borrow<Row>(block).shape(0);
    if (steps >= 0 && n != steps) {
      throw FusionError("member " + std::to_string(m) + " has rows for " + std::to_string(n) +
                            " steps, member 0 for " + std::to_string(steps),
                        static_cast<int>(m));
    }
    steps = n;
  }
  float* out = nullptr;
  if (!dense.is_none()) {
    out = py::cast<py::array_t<float, py::array::c_style>>(dense).mutable_data();
  }
  const auto symbols = static_cast<std::size_t>(alignment.size());
  std::vector<Fused> fused;
  const py::gil_scoped_release released;
  Rows at(blocks.size());
  for (py::ssize_t step = 0; step < steps; ++step) {
    for (std::size_t m = 0; m < blocks.size(); ++m) {
      at[m] = blocks[m] + step * alignment.vocab(m).size();
    }
    pool.read(at, weights);
    fused.push_back(pool.candidates(top));
    if (out != nullptr) pool.dense({out + static_cast<std::size_t>(step) * symbols, symbols});
  }
  return fused;
}

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

void bind_kernels(py::module_& m) {
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const std::string_view name : available_isas()) names.emplace_back(name);
    return names;
  });
  m.def("set_isa", [](const std::string& name) { set_isa(name); }, "name"_a);
  // For tests and benches: single primitives on one row, through the table in use.
  m.def(
      "log_sum_exp",
      [](const Row& row) {
        const auto n = static_cast<std::size_t>(row.size());
        std::vector<float> blocks((n + kBlock - 1) / kBlock);
        const py::gil_scoped_release released;
        const float max = kernels().block_max(row.data(), n, blocks.data());
        return static_cast<double>(max) + std::log(kernels().sum_exp(row.data(), n, max));
      },
      "row"_a.noconvert());
}

void bind_vocab(py::module_& m) {
  py::class_<Vocab, std::shared_ptr<Vocab>>(m, "Vocab")
      .def(py::init(&make_vocab), "blob"_a, "offsets"_a, "kinds"_a)
      .def_static("from_llama", &vocab_from_llama, "vocab"_a, "n"_a, "token_to_piece"_a,
                  "get_attr"_a, "is_eog"_a, py::call_guard<py::gil_scoped_release>())
      .def("__len__", &Vocab::size)
      .def(
          "token_bytes",
          [](const Vocab& vocab, std::int32_t id) {
            check_token(vocab, id);
            return py::bytes(vocab.bytes(id));
          },
          "id"_a)
      .def(
          "join",
          [](const Vocab& vocab, const std::vector<std::int32_t>& ids) {
            std::string text;
            for (const std::int32_t id : ids) {
              check_token(vocab, id);
              text += vocab.bytes(id);
            }
            return py::bytes(text);
          },
          "ids"_a)
      .def(
          "lengths",
          [](const Vocab& vocab, const std::vector<std::int32_t>& ids) {
            std::vector<std::size_t> lengths;
            for (const std::int32_t id : ids) {
              check_token(vocab, id);
              lengths.push_back(vocab.bytes(id).size());
            }
            return lengths;
          },
          "ids"_a)
      .def_property_readonly("kinds",
                             [](const Vocab& vocab) {
                               const auto kinds = vocab.kinds();
                               return py::array_t<std::uint8_t>(
                                   static_cast<py::ssize_t>(kinds.size()),
                                   reinterpret_cast<const std::uint8_t*>(kinds.data()));
                             })
      .def_property_readonly(
          "end_ids",
          [](const py::object& self) { return view(self.cast<Vocab&>().end_ids(), self); })
      .def_property_readonly(
          "sorted_ids",
          [](const py::object& self) { return view(self.cast<Vocab&>().sorted(), self); })
      .def(
          "lookup",
          [](const Vocab& vocab, const py::bytes& bytes) {
            return vocab.lookup(std::string_view(bytes));
          },
          "bytes"_a)
      .def(
          "prefix_range",
          [](const Vocab& vocab, const py::bytes& prefix) {
            return vocab.prefix_range(std::string_view(prefix));
          },
          "prefix"_a)
      .def(
          "canonical",
          [](const Vocab& vocab, std::int32_t id) {
            check_token(vocab, id);
            return vocab.canonical(id);
          },
          "id"_a)
      .def(
          "same",
          [](const Vocab& vocab, std::int32_t id) {
            check_token(vocab, id);
            std::vector<std::int32_t> ids;
            for (std::int32_t k = vocab.canonical(id); k != kNone; k = vocab.next_same(k)) {
              ids.push_back(k);
            }
            return ids;
          },
          "id"_a)
      .def("duplicates",
           [](const Vocab& vocab) {
             std::vector<std::int32_t> ids(vocab.shared().begin(), vocab.shared().end());
             return ids;
           })
      .def("__eq__", [](const Vocab& a, const Vocab& b) { return a == b; }, py::is_operator());
  m.def(
      "boundary_probability",
      [](const Vocab& vocab, const Row& row, std::int32_t token) {
        if (row.ndim() != 1 || row.shape(0) != vocab.size()) {
          throw FusionError("the row must have one logit for each of " +
                            std::to_string(vocab.size()) + " tokens");
        }
        const py::gil_scoped_release released;
        return boundary_probability(vocab, row.data(), token);
      },
      "vocab"_a, "row"_a.noconvert(), "token"_a);
  m.def(
      "continues_utf8",
      [](const py::bytes& pending, const py::bytes& bytes) {
        return continues_utf8(std::string_view(pending), std::string_view(bytes));
      },
      "pending"_a, "bytes"_a);
  m.def(
      "unfinished_utf8",
      [](const py::bytes& text) { return unfinished_utf8(std::string_view(text)); }, "text"_a);
}

void bind_alignment(py::module_& m) {
  py::class_<Alignment, std::shared_ptr<Alignment>>(m, "Alignment")
      .def(py::init([](const std::vector<std::shared_ptr<Vocab>>& vocabs) {
             const py::gil_scoped_release released;
             return std::make_shared<Alignment>(
                 std::vector<std::shared_ptr<const Vocab>>(vocabs.begin(), vocabs.end()));
           }),
           "vocabs"_a)
      .def("__len__", &Alignment::size)
      .def_property_readonly("members", &Alignment::members)
      .def_property_readonly("identical", &Alignment::identical)
      .def_property_readonly("end", &Alignment::end)
      .def(
          "symbol_bytes",
          [](const Alignment& alignment, std::int32_t symbol) {
            check_symbol(alignment, symbol);
            return py::bytes(alignment.bytes(symbol));
          },
          "symbol"_a)
      .def(
          "lookup",
          [](const Alignment& alignment, const py::bytes& bytes) {
            return alignment.lookup(std::string_view(bytes));
          },
          "bytes"_a)
      .def(
          "symbol",
          [](const Alignment& alignment, std::size_t member, std::int32_t token) {
            check_member(alignment, member);
            check_token(alignment.vocab(member), token);
            return alignment.symbol(member, token);
          },
          "member"_a, "token"_a)
      .def(
          "twin",
          [](const Alignment& alignment, std::size_t member, std::int32_t symbol) {
            check_member(alignment, member);
            check_symbol(alignment, symbol);
            return alignment.twin(member, symbol);
          },
          "member"_a, "symbol"_a)
      .def(
          "to_symbol",
          [](const py::object& self, std::size_t member) {
            const auto& alignment = self.cast<Alignment&>();
            check_member(alignment, member);
            return view(alignment.to_symbol(member), self);
          },
          "member"_a)
      .def(
          "to_token",
          [](const py::object& self, std::size_t member) {
            const auto& alignment = self.cast<Alignment&>();
            check_member(alignment, member);
            return view(alignment.to_token(member), self);
          },
          "member"_a);
}

void bind_pool(py::module_& m) {
  py::class_<Fused>(m, "Fused")
      .def("__len__", &Fused::size)
      .def_property_readonly("symbols", [](const Fused& f) { return copy(f.symbols); })
      .def_property_readonly("logprobs", [](const Fused& f) { return copy(f.logprobs); })
      .def_property_readonly("member_logprobs",
                             [](const Fused& f) {
                               const auto n = static_cast<py::ssize_t>(f.size());
                               const auto all =
                                   static_cast<py::ssize_t>(f.member_logprobs.size());
                               return py::array_t<float>({n == 0 ? 0 : all / n, n},
                                                         f.member_logprobs.data());
                             })
      .def_readonly("outside", &Fused::outside)
      .def("symbol", [](const Fused& f, std::size_t k) { return f.symbols.at(k); }, "k"_a)
      .def("logprob", [](const Fused& f, std::size_t k) { return f.logprobs.at(k); }, "k"_a)
      .def(
          "member_logprob",
          [](const Fused& f, std::size_t k) {
            const std::size_t n = f.size();
            std::vector<float> values;
            for (std::size_t at = k; at < f.member_logprobs.size(); at += n) {
              values.push_back(f.member_logprobs[at]);
            }
            return values;
          },
          "k"_a)
      .def(
          "forbid",
          [](Fused& f, std::size_t k) {
            const std::size_t n = f.size();
            if (k >= n) throw py::index_error("there are " + std::to_string(n) + " candidates");
            const std::size_t members = f.member_logprobs.size() / n;
            for (std::size_t m = members; m-- > 0;) {
              f.member_logprobs.erase(f.member_logprobs.begin() +
                                      static_cast<std::ptrdiff_t>(m * n + k));
            }
            f.symbols.erase(f.symbols.begin() + static_cast<std::ptrdiff_t>(k));
            f.logprobs.erase(f.logprobs.begin() + static_cast<std::ptrdiff_t>(k));
          },
          "k"_a);
  m.def(
      "normalise_weights",
      [](const std::vector<double>& weights, std::size_t members) {
        return normalise_weights(weights, members);
      },
      "weights"_a, "members"_a);
  py::native_enum<Decision>(m, "Decision", "enum.Enum")
      .value("open", Decision::open)
      .value("agree", Decision::agree)
      .value("certain", Decision::certain)
      .finalize();
  m.attr("ALL") = kAll;
  py::class_<Pool>(m, "Pool")
      .def(py::init([](std::shared_ptr<Alignment> alignment, const std::string& kind, float floor) {
             PoolOptions options;
             options.floor = floor;
             if (kind == "linear") {
               options.kind = PoolKind::linear;
             } else if (kind == "log-linear") {
               options.kind = PoolKind::log_linear;
             } else {
               throw FusionError("unknown pool '" + kind + "'; known: linear, log-linear");
             }
             return std::make_unique<Pool>(std::move(alignment), options);
           }),
           "alignment"_a, "kind"_a, "floor"_a)
      .def(
          "read",
          [](Pool& pool, const py::sequence& rows, const std::vector<double>& weights) {
            const Rows pointers = row_pointers(rows, pool.alignment());
            const py::gil_scoped_release released;
            pool.read(pointers, weights);
          },
          "rows"_a, "weights"_a)
      .def("decide",
           [](const Pool& pool) {
             std::int32_t symbol = kNone;
             Decision decision = Decision::open;
             {
               const py::gil_scoped_release released;
               decision = pool.decide(symbol);
             }
             return py::make_tuple(decision, symbol);
           })
      .def("best",
           [](const Pool& pool) {
             std::vector<std::int32_t> symbols;
             for (std::size_t m = 0; m < pool.alignment().members(); ++m) {
               symbols.push_back(pool.best(m));
             }
             return symbols;
           })
      .def(
          "candidates",
          [](Pool& pool, std::int32_t top, const std::vector<std::int32_t>& forced) {
            const py::gil_scoped_release released;
            return pool.candidates(top, forced);
          },
          "top"_a, "forced"_a = std::vector<std::int32_t>{})
      .def(
          "score",
          [](Pool& pool, std::int32_t symbol) {
            check_symbol(pool.alignment(), symbol);
            return pool.score(symbol);
          },
          "symbol"_a)
      .def(
          "dense",
          [](Pool& pool, Row& out) {
            float* data = out.mutable_data();
            const auto n = static_cast<std::size_t>(out.size());
            const py::gil_scoped_release released;
            pool.dense({data, n});
          },
          "out"_a.noconvert())
      .def("fuse_steps", &fuse_steps, "rows"_a, "weights"_a, "top"_a, "dense"_a = py::none());
}

void bind_sampling(py::module_& m) {
  py::class_<Sampler>(m, "Sampler")
      .def(py::init([](float temperature, std::int32_t top_k, float top_p, float min_p,
                       float typical_p, float repeat_penalty, float frequency_penalty,
                       float presence_penalty, std::int32_t penalty_last_n, std::uint64_t seed,
                       const std::vector<std::pair<std::int32_t, float>>& biases) {
             std::vector<Bias> list;
             for (const auto& [symbol, value] : biases) list.push_back({symbol, value});
             return std::make_unique<Sampler>(
                 SamplingOptions{temperature, top_k, top_p, min_p, typical_p, repeat_penalty,
                                 frequency_penalty, presence_penalty, penalty_last_n, seed},
                 std::move(list));
           }),
           py::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a,
           "repeat_penalty"_a, "frequency_penalty"_a, "presence_penalty"_a, "penalty_last_n"_a,
           "seed"_a, "biases"_a)
      .def("accept", &Sampler::accept, "symbol"_a)
      .def_property_readonly("touched",
                             [](const Sampler& sampler) {
                               return std::vector<std::int32_t>(sampler.touched().begin(),
                                                                sampler.touched().end());
                             })
      .def_property_readonly("greedy", &Sampler::greedy)
      .def_property_readonly("processes", &Sampler::processes)
      .def("process", &Sampler::process, "fused"_a)
      .def("draw", &Sampler::draw, "fused"_a)
      .def("filter", [](Sampler& sampler, const Fused& fused) -> py::object {
        if (!sampler.filter(fused)) return py::none();
        return py::make_tuple(
            copy(std::vector<std::int32_t>(sampler.kept().begin(), sampler.kept().end())),
            copy(std::vector<float>(sampler.probabilities().begin(),
                                    sampler.probabilities().end())));
      }, "fused"_a);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The native core of logitfuse; private, use the package's public names.";
  m.attr("__version__") = LOGITFUSE_VERSION;
  py::register_local_exception_translator(&translate);
  bind_kernels(m);
  bind_vocab(m);
  bind_alignment(m);
  bind_pool(m);
  bind_sampling(m);
}
