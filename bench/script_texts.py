"""One short text in several scripts, and a beginning that a model may go on with, for each.

The languages tell the same story, written for this purpose.
"""

from __future__ import annotations

TEXTS = {
    "English": (
        "The market by the harbour opens before sunrise. Fishermen bring in crates of herring and "
        "mackerel, and the first buyers walk slowly from stall to stall, comparing prices. By "
        "eight o'clock the square is full: someone sells honey, someone else repairs bicycles, "
        "and an old man plays the violin next to the fountain.\n\nIn 1987 the town decided to "
        "rebuild the long wooden pier, which a storm had destroyed two years earlier. The work "
        "took 14 months and cost about 3.5 million. Today children learn to sail here, and in "
        "the evening the lamps along the water are reflected in the quiet bay.\n\nVisitors often "
        "ask why the clock on the tower is five minutes fast. The answer is simple: the ferry "
        "never waits, and nobody wanted to miss it.\n"
    ),
    "code": '''\
"""Prices of a market, by day."""

from collections import defaultdict


class PriceList:
    def __init__(self, currency="EUR"):
        self.currency = currency
        self._prices = defaultdict(list)

    def add(self, article, day, price):
        if price <= 0.0:
            raise ValueError(f"{article}: {price!r} is not a price")
        self._prices[article].append((day, price))

    def cheapest(self, article):
        # (day, price), or None if nothing is known
        return min(self._prices[article], key=lambda pair: pair[1], default=None)


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            article, day, price = line.rstrip("\\n").split("\\t")
            yield number, article.strip(), int(day), float(price)


if __name__ == "__main__":
    prices = PriceList()
    for _, article, day, price in read_lines("prices.tsv"):
        prices.add(article, day, price)
    print({name: prices.cheapest(name) for name in ("herring", "mackerel", "honey")})
''',
    "Ukrainian": (
        "Ринок біля гавані відчиняється ще до сходу сонця. Рибалки приносять ящики з оселедцями "
        "та скумбрією, а перші покупці повільно ходять від прилавка до прилавка й порівнюють "
        "ціни. О восьмій годині на площі вже людно: хтось продає мед, хтось лагодить велосипеди, "
        "а старий чоловік грає на скрипці біля фонтана.\n\nУ 1987 році місто вирішило відбудувати "
        "довгий дерев'яний причал, який двома роками раніше зруйнувала буря. Роботи тривали 14 "
        "місяців і коштували близько 3,5 мільйона. Сьогодні тут діти вчаться ходити під "
        "вітрилом, а ввечері ліхтарі вздовж берега відбиваються в тихій затоці.\n\nГості часто "
        "питають, чому годинник на вежі поспішає на п'ять хвилин. Відповідь проста: пором ніколи "
        "не чекає, і ніхто не хотів на нього запізнитися.\n"
    ),
    "Chinese": (
        "港口旁边的市场在日出之前就开门了。渔民们搬来一箱箱鲱鱼和鲭鱼，第一批顾客慢慢地从一个摊位走到"
        "另一个摊位，比较价格。到了八点钟，广场上已经挤满了人：有人卖蜂蜜，有人修自行车，还有一位老人在"
        "喷泉旁边拉小提琴。\n\n1987年，镇上决定重建那座长长的木码头，它在两年前被一场风暴摧毁了。工程"
        "持续了14个月，花费大约350万元。如今孩子们在这里学习驾驶帆船，到了晚上，岸边的灯光倒映在安静的"
        "海湾里。\n\n游客们常常问，为什么塔楼上的钟快了五分钟。答案很简单：渡船从来不等人，谁也不想错过"
        "它。\n"
    ),
    "Arabic": (
        "يفتح السوق القريب من الميناء أبوابه قبل شروق الشمس. يحضر الصيادون صناديق السمك، ويمشي "
        "أول المشترين ببطء من بائع إلى آخر ويقارنون الأسعار. في الساعة الثامنة تمتلئ الساحة "
        "بالناس: واحد يبيع العسل، وآخر يصلح الدراجات، ورجل عجوز يعزف على الكمان بجانب "
        "النافورة.\n\nفي عام 1987 قررت المدينة إعادة بناء الرصيف الخشبي الطويل الذي دمرته عاصفة "
        "قبل ذلك بعامين. استمر العمل 14 شهرا وبلغت تكلفته نحو 3.5 مليون. واليوم يتعلم الأطفال "
        "الإبحار هنا، وفي المساء تنعكس أضواء المصابيح على مياه الخليج الهادئ.\n\nكثيرا ما يسأل "
        "الزوار لماذا تتقدم ساعة البرج خمس دقائق. الجواب بسيط: العبارة لا تنتظر أحدا، ولم يرد "
        "أحد أن تفوته.\n"
    ),
    "Hindi": (
        "बंदरगाह के पास का बाज़ार सूरज निकलने से पहले खुल जाता है। मछुआरे मछलियों की पेटियाँ लाते हैं, और पहले "
        "ग्राहक धीरे-धीरे एक दुकान से दूसरी दुकान तक जाकर दाम पूछते हैं। आठ बजे तक चौक भर जाता है: कोई शहद "
        "बेचता है, कोई साइकिल ठीक करता है, और एक बूढ़ा आदमी फव्वारे के पास वायलिन बजाता है।\n\n1987 में शहर ने "
        "लकड़ी का लंबा घाट फिर से बनाने का फ़ैसला किया, जिसे दो साल पहले एक तूफ़ान ने तोड़ दिया था। काम 14 "
        "महीने चला और उस पर लगभग 35 लाख रुपये ख़र्च हुए। आज बच्चे यहाँ नाव चलाना सीखते हैं, और शाम को किनारे की "
        "बत्तियाँ शांत पानी में चमकती हैं।\n\nलोग अक्सर पूछते हैं कि मीनार की घड़ी पाँच मिनट आगे क्यों है। जवाब "
        "सीधा है: नाव किसी का इंतज़ार नहीं करती।\n"
    ),
    "emoji": (
        "Anna 🌸: morning!! ☀️ who is coming to the market today? 🐟🥕🍯\n"
        "Bogdan 🚲: me 🙋🏽‍♂️ but only after 9:30 ⏰ (bike is broken again 😭🔧)\n"
        "Chen 🎻: already here 😎👍🏻 the old man by the fountain plays so well 🎶💯💯\n"
        "Anna 🌸: take a photo 📸🙏🏾 — is the pier open? ⚓️🌊\n"
        "Chen 🎻: yes ✅ 👨‍👩‍👧‍👦 learning to sail ⛵️⛵️ flags everywhere 🇺🇦🇫🇷🇯🇵🏴󠁧󠁢󠁳󠁣󠁴󠁿\n"
        "Bogdan 🚲: the clock is 5 min fast 🕗➡️🕘 don't miss the ferry ⛴️💨 hahaha 🤣🤣🤣\n"
        "Anna 🌸: 3.5 km to go 🏃🏿‍♀️🏃🏿‍♀️ see you ❤️‍🔥🧑🏼‍❤️‍🧑🏾 👋🏼\n"
    ),
}

PROMPTS = {
    "English": "The history of the harbour begins with",
    "code": "def quicksort(values):\n    ",
    "Ukrainian": "Українська мова — це",
    "Chinese": "中国的历史非常悠久，",
    "Arabic": "تقع المدينة على شاطئ البحر، و",
    "Hindi": "यह शहर समुद्र के किनारे है और",
    "emoji": "Today was great 😀🎉🎂 and tomorrow 🌞🏖️",
}
