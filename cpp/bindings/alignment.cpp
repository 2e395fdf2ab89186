#include "logitfuse/alignment.hpp"

#include <memory>

#include "bind.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {
namespace {

void check_member(const Alignment& alignment, std::size_t member) {
  if (member >= alignment.members()) {
    throw py::index_error("member " + std::to_string(member) + " is not among " +
                          std::to_string(alignment.members()));
  }
}

}  // namespace

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

}  // namespace logitfuse
