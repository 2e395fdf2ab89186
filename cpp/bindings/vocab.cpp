#include "logitfuse/vocab.hpp"

#include <memory>
#include <string_view>

#include "bind.hpp"
#include "logitfuse/error.hpp"
#include "logitfuse/prefix_mass.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace logitfuse {
namespace {

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
                                        std::uintptr_t piece_function, std::uintptr_t attr_function,
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

}  // namespace

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

}  // namespace logitfuse
