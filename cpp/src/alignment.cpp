#include "logitfuse/alignment.hpp"

#include <algorithm>

#include "logitfuse/error.hpp"

namespace logitfuse {

Alignment::Alignment(std::vector<std::shared_ptr<const Vocab>> vocabs)
    : vocabs_(std::move(vocabs)) {
  if (vocabs_.empty()) throw VocabError("an alignment needs at least one vocabulary");
  const Vocab& first = *vocabs_.front();
  identical_ = std::all_of(vocabs_.begin(), vocabs_.end(), [&](const auto& vocab) {
    return vocab.get() == &first || *vocab == first;
  });
  if (identical_) {
    size_ = first.size();
    end_ = first.end_ids().empty() ? kNone : first.end_ids().front();
  } else {
    merge();
  }
}

// The vocabularies are sorted, so the union is one merge.  The heads are compared by their first
// eight bytes and only then as strings.
void Alignment::merge() {
  struct Head {
    std::size_t member, pos;
    std::uint64_t key;
    std::string_view bytes;
  };
  std::vector<Head> heads;
  std::size_t most = 1;
  for (std::size_t m = 0; m < members(); ++m) {
    to_symbol_.emplace_back(vocab(m).size(), kNone);
    most += vocab(m).sorted().size();
  }
  symbol_owner_.reserve(most);
  const auto read = [this](Head& head) {  // false: this vocabulary is at its end
    const auto sorted = vocab(head.member).sorted();
    if (head.pos == sorted.size()) return false;
    head.bytes = vocab(head.member).bytes(sorted[head.pos]);
    head.key = prefix_key(head.bytes);
    return true;
  };
  for (std::size_t m = 0; m < members(); ++m) {
    Head head{m, 0, 0, {}};
    if (read(head)) heads.push_back(head);
  }
  while (!heads.empty()) {
    const Head least =
        *std::min_element(heads.begin(), heads.end(), [](const Head& a, const Head& b) {
          return a.key != b.key ? a.key < b.key : a.bytes < b.bytes;
        });
    const auto symbol = static_cast<std::int32_t>(symbol_owner_.size());
    symbol_owner_.push_back(
        {static_cast<std::int32_t>(least.member), vocab(least.member).sorted()[least.pos]});
    for (std::size_t h = 0; h < heads.size();) {
      Head& head = heads[h];
      bool more = true;
      while (more && head.key == least.key && head.bytes == least.bytes) {
        const std::int32_t token = vocab(head.member).sorted()[head.pos++];
        to_symbol_[head.member][static_cast<std::size_t>(token)] = symbol;
        more = read(head);
      }
      if (more) {
        ++h;
      } else {
        heads.erase(heads.begin() + static_cast<std::ptrdiff_t>(h));
      }
    }
  }
  const auto strings = static_cast<std::int32_t>(symbol_owner_.size());
  const bool ends = std::any_of(vocabs_.begin(), vocabs_.end(),
                                [](const auto& vocab) { return !vocab->end_ids().empty(); });
  if (ends) end_ = strings;
  size_ = strings + (ends ? 1 : 0);
  for (std::size_t m = 0; m < members(); ++m) {
    for (const std::int32_t id : vocab(m).end_ids()) {
      to_symbol_[m][static_cast<std::size_t>(id)] = end_;
    }
    to_token_.emplace_back(size_, kNone);
    for (std::int32_t id = 0; id < vocab(m).size(); ++id) {
      if (vocab(m).canonical(id) != id) continue;
      to_token_[m][static_cast<std::size_t>(symbol(m, id))] = id;
    }
  }
}

std::string_view Alignment::bytes(std::int32_t symbol) const {
  if (symbol == end_) return {};
  if (identical()) return vocabs_.front()->bytes(symbol);
  const Owner owner = symbol_owner_[static_cast<std::size_t>(symbol)];
  return vocab(static_cast<std::size_t>(owner.member)).bytes(owner.token);
}

std::int32_t Alignment::lookup(std::string_view wanted) const {
  if (identical()) return vocabs_.front()->lookup(wanted);
  const auto found = std::lower_bound(
      symbol_owner_.begin(), symbol_owner_.end(), wanted,
      [this](const Owner& owner, std::string_view value) {
        return vocab(static_cast<std::size_t>(owner.member)).bytes(owner.token) < value;
      });
  const auto symbol = static_cast<std::int32_t>(found - symbol_owner_.begin());
  return found != symbol_owner_.end() && bytes(symbol) == wanted ? symbol : kNone;
}

std::span<const std::int32_t> Alignment::to_symbol(std::size_t member) const {
  if (identical()) return {};
  return to_symbol_[member];
}

std::span<const std::int32_t> Alignment::to_token(std::size_t member) const {
  if (identical()) return {};
  return to_token_[member];
}

}  // namespace logitfuse
