#include <memory>

#include "bind.hpp"
#include "logitfuse/error.hpp"
#include "logitfuse/unit_search.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {
namespace {

std::string bytes_view(const py::bytes& bytes) { return std::string(std::string_view(bytes)); }

const float* row_data(const Row& row, const ByteBeam& beam) {
  const auto n = beam.trie().vocab().size();
  if (row.ndim() != 1 || row.size() != n) {
    throw FusionError("the row has " + std::to_string(row.size()) + " logits; the vocabulary has " +
                      std::to_string(n) + " tokens");
  }
  return row.data();
}

}  // namespace

void bind_bytes(py::module_& m) {
  m.attr("BYTE_OUTCOMES") = kByteOutcomes;
  py::class_<ByteTrie, std::shared_ptr<ByteTrie>>(m, "ByteTrie")
      .def(py::init([](std::shared_ptr<Vocab> vocab) {
             const py::gil_scoped_release released;
             return std::make_shared<ByteTrie>(std::move(vocab));
           }),
           "vocab"_a)
      .def("__len__", &ByteTrie::size);
  py::class_<ByteBeam, std::shared_ptr<ByteBeam>>(m, "ByteBeam")
      .def(py::init([](std::shared_ptr<ByteTrie> trie, double prune, std::int32_t width) {
             return std::make_shared<ByteBeam>(std::move(trie), BeamOptions{prune, width});
           }),
           "trie"_a, py::kw_only(), "prune"_a, "width"_a)
      .def("set_prune", &ByteBeam::set_prune, "prune"_a)
      .def("begin", &ByteBeam::begin)
      .def("rest", &ByteBeam::rest)
      .def(
          "row",
          [](ByteBeam& beam, std::int32_t id, const Row& row, const py::object& allowed) {
            const float* data = row_data(row, beam);
            const TokenBits bits = token_bits(allowed);
            const py::gil_scoped_release released;
            beam.row(id, data, bits);
          },
          "id"_a, "row"_a.noconvert(), "allowed"_a = py::none())
      .def(
          "two_rows",
          [](ByteBeam& beam, const Row& before, std::int32_t token, const Row& after,
             const py::object& allowed_before, const py::object& allowed_after) {
            check_token(beam.trie().vocab(), token);
            const float* first = row_data(before, beam);
            const float* second = row_data(after, beam);
            const TokenBits bits = token_bits(allowed_before);
            const TokenBits more_bits = token_bits(allowed_after);
            const py::gil_scoped_release released;
            beam.two_rows(first, token, second, bits, more_bits);
          },
          "before"_a.noconvert(), "token"_a, "after"_a.noconvert(), "allowed_before"_a = py::none(),
          "allowed_after"_a = py::none())
      .def(
          "push",
          [](ByteBeam& beam, const py::bytes& bytes) {
            const std::string text = bytes_view(bytes);
            const py::gil_scoped_release released;
            return beam.push(text);
          },
          "bytes"_a)
      .def("wake", &ByteBeam::wake)
      .def("expect", &ByteBeam::expect, "id"_a, "token"_a)
      .def("take_kept", &ByteBeam::take_kept)
      .def_property_readonly("waiting", &ByteBeam::waiting)
      .def_property_readonly("dead", &ByteBeam::dead)
      .def_property_readonly("wanted",
                             [](const ByteBeam& beam) {
                               std::vector<std::tuple<int, int, int>> wanted;
                               for (const auto& w : beam.wanted()) {
                                 wanted.emplace_back(w.id, w.parent, w.token);
                               }
                               return wanted;
                             })
      .def("take_dropped",
           [](ByteBeam& beam) {
             const auto dropped = beam.dropped();
             std::vector<std::int32_t> ids(dropped.begin(), dropped.end());
             beam.forget_dropped();
             return ids;
           })
      .def_property_readonly("best", &ByteBeam::best)
      .def_property_readonly("shares",
                             [](const ByteBeam& beam) {
                               std::vector<std::pair<std::int32_t, double>> shares;
                               for (const auto& h : beam.hypotheses())
                                 shares.emplace_back(h.id, h.share);
                               return shares;
                             })
      .def(
          "next",
          [](const ByteBeam& beam, Row& out) {
            if (out.size() != static_cast<py::ssize_t>(kByteOutcomes)) {
              throw FusionError("the output must hold 257 numbers, not " +
                                std::to_string(out.size()));
            }
            beam.next({out.mutable_data(), kByteOutcomes});
          },
          "out"_a.noconvert());
  py::class_<UnitSearch>(m, "UnitSearch")
      .def(py::init([](std::shared_ptr<Alignment> alignment,
                       const std::vector<std::shared_ptr<ByteBeam>>& beams, bool per_unit,
                       const std::string& kind, float floor, float exponent, float plausibility,
                       std::shared_ptr<ByteGate> gate) {
             UnitSearch::Rule rule;
             rule.pool = PoolOptions{pool_kind(kind), floor, exponent, plausibility, 0};
             rule.per = per_unit ? PoolUnit::unit : PoolUnit::byte;
             rule.gate = std::move(gate);
             return std::make_unique<UnitSearch>(
                 std::move(alignment),
                 std::vector<std::shared_ptr<const ByteBeam>>(beams.begin(), beams.end()),
                 std::move(rule));
           }),
           "alignment"_a, "beams"_a, "per_unit"_a = false, "kind"_a = "linear",
           "floor"_a = PoolOptions{}.floor, "exponent"_a = PoolOptions{}.exponent,
           "plausibility"_a = PoolOptions{}.plausibility, "gate"_a = py::none())
      .def(
          "read",
          [](UnitSearch& search, const std::vector<double>& weights, const py::bytes& pending,
             bool may_end, const std::vector<float>& history,
             const std::vector<std::int32_t>& excluded) {
            UnitSearch::Text text{bytes_view(pending), may_end, history, excluded};
            const py::gil_scoped_release released;
            search.read(weights, std::move(text));
          },
          "weights"_a, "pending"_a, py::kw_only(), "may_end"_a, "history"_a = std::vector<float>{},
          "excluded"_a = std::vector<std::int32_t>{})
      .def(
          "candidates",
          [](UnitSearch& search, std::int32_t n, const std::vector<std::int32_t>& forced) {
            const py::gil_scoped_release released;
            return search.candidates(n, forced);
          },
          "n"_a, "forced"_a = std::vector<std::int32_t>{})
      .def(
          "draw",
          [](UnitSearch& search, double place) {
            const py::gil_scoped_release released;
            return search.draw(place);
          },
          "place"_a)
      .def(
          "along",
          [](UnitSearch& search, const py::bytes& text) {
            const std::string bytes = bytes_view(text);
            const py::gil_scoped_release released;
            return search.along(bytes);
          },
          "text"_a)
      .def("forget", &UnitSearch::forget)
      .def(
          "spelled",
          [](const UnitSearch& search, std::int32_t symbol) {
            const auto spelled = search.spelled(symbol);
            return std::vector<std::int32_t>(spelled.begin(), spelled.end());
          },
          "symbol"_a)
      .def(
          "unit",
          [](const UnitSearch& search, std::int32_t symbol) {
            return py::bytes(std::string(search.unit(symbol)));
          },
          "symbol"_a);
}

}  // namespace logitfuse
