#include "logitfuse/pool.hpp"

#include <pybind11/native_enum.h>

#include <limits>
#include <memory>
#include <utility>

#include "bind.hpp"
#include "logitfuse/error.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {
namespace {

using Rows = std::vector<const float*>;
using Longs = py::array_t<std::int64_t, py::array::c_style>;

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

py::array_t<float> pool_matrix(const std::string& kind, float floor, float exponent,
                               float plausibility, const std::vector<double>& weights,
                               const Row& matrix) {
  if (matrix.ndim() != 2) {
    throw FusionError("member log-probabilities must be [members, symbols], not of " +
                      std::to_string(matrix.ndim()) + " dimensions");
  }
  if (static_cast<std::size_t>(matrix.shape(0)) != weights.size()) {
    throw FusionError("expected " + std::to_string(matrix.shape(0)) +
                      " weights, one per member, got " + std::to_string(weights.size()));
  }
  py::array_t<float> out(matrix.shape(1));
  const std::span<const float> values(matrix.data(), static_cast<std::size_t>(matrix.size()));
  const std::span<float> target(out.mutable_data(), static_cast<std::size_t>(out.size()));
  const py::gil_scoped_release released;
  combine({pool_kind(kind), floor, exponent, plausibility}, weights, values, target);
  return out;
}

}  // namespace

void bind_pool(py::module_& m) {
  py::class_<Fused>(m, "Fused")
      .def("__len__", &Fused::size)
      .def_property_readonly(
          "symbols", [](const Fused& f) { return copy(std::span<const std::int32_t>(f.symbols)); })
      .def_property_readonly(
          "logprobs", [](const Fused& f) { return copy(std::span<const float>(f.logprobs)); })
      .def_property_readonly("member_logprobs",
                             [](const Fused& f) {
                               const auto n = static_cast<py::ssize_t>(f.size());
                               const auto all = static_cast<py::ssize_t>(f.member_logprobs.size());
                               return py::array_t<float>({n == 0 ? 0 : all / n, n},
                                                         f.member_logprobs.data());
                             })
      .def_readonly("outside", &Fused::outside)
      .def(
          "symbol", [](const Fused& f, std::size_t k) { return f.symbols.at(k); }, "k"_a)
      .def(
          "logprob", [](const Fused& f, std::size_t k) { return f.logprobs.at(k); }, "k"_a)
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
      .def("close",
           [](Fused& f) {
             f.outside = -std::numeric_limits<float>::infinity();
             normalise(f.logprobs);
           })
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
      [](const std::vector<double>& weights, std::size_t members, const std::string& kind) {
        return normalise_weights(pool_kind(kind), weights, members);
      },
      "weights"_a, "members"_a, "kind"_a = "linear");
  m.def("pool_matrix", &pool_matrix, "kind"_a, "floor"_a, "exponent"_a, "plausibility"_a,
        "weights"_a, "matrix"_a.noconvert());
  py::native_enum<Decision>(m, "Decision", "enum.Enum")
      .value("open", Decision::open)
      .value("agree", Decision::agree)
      .value("certain", Decision::certain)
      .finalize();
  m.attr("ALL") = kAll;
  py::class_<Pool>(m, "Pool")
      .def(py::init([](std::shared_ptr<Alignment> alignment, const std::string& kind, float floor,
                       float exponent, float plausibility, std::int32_t union_top) {
             return std::make_unique<Pool>(
                 std::move(alignment),
                 PoolOptions{pool_kind(kind), floor, exponent, plausibility, union_top});
           }),
           "alignment"_a, "kind"_a, "floor"_a = PoolOptions{}.floor,
           "exponent"_a = PoolOptions{}.exponent, "plausibility"_a = PoolOptions{}.plausibility,
           "union_top"_a = PoolOptions{}.union_top)
      .def(
          "read",
          [](Pool& pool, const py::sequence& rows, const std::vector<double>& weights,
             const std::vector<py::object>& allowed) {
            const Rows pointers = row_pointers(rows, pool.alignment());
            std::vector<TokenBits> bits;
            for (const py::object& some : allowed) bits.push_back(token_bits(some));
            const py::gil_scoped_release released;
            pool.read(pointers, weights, bits);
          },
          "rows"_a, "weights"_a, "allowed"_a = std::vector<py::object>{})
      .def(
          "reweigh", [](Pool& pool, const std::vector<double>& weights) { pool.reweigh(weights); },
          "weights"_a)
      .def(
          "certain_without",
          [](Pool& pool, double rest_weight) {
            const py::gil_scoped_release released;
            return pool.certain_without(rest_weight);
          },
          "rest_weight"_a)
      .def(
          "project",
          [](Pool& pool, std::size_t member, const Longs& offsets, const Ints& symbols,
             const Row& weights) {
            pool.project(member, {offsets.data(), offsets.data() + offsets.size()},
                         {symbols.data(), symbols.data() + symbols.size()},
                         {weights.data(), static_cast<std::size_t>(weights.size())});
          },
          "member"_a, "offsets"_a.noconvert(), "symbols"_a.noconvert(), "weights"_a.noconvert())
      .def("restrict", &Pool::restrict_to, "pivot"_a)
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
          "best_of",
          [](Pool& pool, std::size_t member, std::int32_t n) {
            if (member >= pool.alignment().members()) {
              throw py::index_error("there are " + std::to_string(pool.alignment().members()) +
                                    " members");
            }
            std::vector<Own> best;
            {
              const py::gil_scoped_release released;
              best = pool.best_of(member, n);
            }
            std::vector<std::pair<std::int32_t, float>> pairs;
            for (const Own own : best) pairs.emplace_back(own.symbol, own.logprob);
            return pairs;
          },
          "member"_a, "n"_a)
      .def(
          "draw",
          [](const Pool& pool, double place) {
            const py::gil_scoped_release released;
            return pool.draw(place);
          },
          "place"_a)
      .def(
          "candidates",
          [](Pool& pool, std::int32_t top, const std::vector<std::int32_t>& forced) {
            const py::gil_scoped_release released;
            return pool.candidates(top, forced);
          },
          "top"_a, "forced"_a = std::vector<std::int32_t>{})
      .def(
          "whole",
          [](Pool& pool, std::int32_t n, const std::vector<std::int32_t>& forced) {
            const py::gil_scoped_release released;
            return pool.whole(n, forced);
          },
          "n"_a, "forced"_a = std::vector<std::int32_t>{})
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

}  // namespace logitfuse
