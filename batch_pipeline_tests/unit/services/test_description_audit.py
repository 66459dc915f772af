# ruff: noqa: RUF001, E501 - texts in many scripts, some of them wider than they are long
"""Each rule at its boundary; real texts in many languages pass, repetitive texts do not."""

import base64
import json
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.services.descriptions.audit import PASS_SCORE, AuditResult, audit

HONEST = {
    "English": "A wooden boat lies on a quiet beach at low tide. Two children in yellow coats walk "
    "towards the water while a dog runs ahead of them.",
    "English, short": "A red bicycle leans against a whitewashed brick wall.",
    "English, keywords": "beach, sea, sand, sun, palm tree, boat, waves, horizon, blue sky, clouds",
    "English, figures": "The receipt shows 3 items: coffee 2.50, bread 4.20 and milk 1.15, in total "
    "7.85 EUR, paid on 12.03.2024 at 09:41 by card.",
    "German": "Ein Herbstspaziergang am Schlossteich: Zwei Spaziergängerinnen stehen unter einer "
    "Kastanie, dahinter liegt die Landschaft im Nebel. Links das Straßenbahnhaltestellenschild.",
    "French": "Une vieille dame assise sur un banc du parc donne du pain aux pigeons ; derrière elle, "
    "des enfants jouent au ballon près de la fontaine.",
    "Spanish": "Un perro marrón corre por la playa al atardecer y una niña lo sigue con una cometa "
    "roja en la mano.",
    "Portuguese": "Uma rua estreita com casas coloridas e roupas penduradas nas varandas; ao fundo "
    "vê-se o mar e um pequeno barco.",
    "Italian": "Un gatto grigio dorme sul davanzale di una finestra aperta, accanto a un vaso di "
    "gerani rossi. Fuori si vede il campanile della chiesa.",
    "Dutch": "Twee fietsers rijden langs een gracht met oude huizen. Op het water ligt een woonboot "
    "met bloemen op het dak.",
    "Swedish": "En röd stuga vid en sjö i skymningen. På bryggan sitter två personer och tittar på "
    "vattnet, och i bakgrunden syns en skog.",
    "Finnish": "Järven rannalla on punainen mökki, ja laiturilla istuu kaksi ihmistä. Taustalla "
    "näkyy metsä, joka heijastuu tyyneen veteen.",
    "Polish": "Na zdjęciu widać rynek w deszczu: kilka osób z parasolami przechodzi obok ratusza, a "
    "w kałużach odbijają się światła latarni. Chrząszcz brzmi w trzcinie w Szczebrzeszynie.",
    "Czech": "Na fotce je vlk, který stojí na kraji lesa. Zmrzlá tráva se třpytí a v dálce čtvrtkem "
    "svítá nad horami. Strč prst skrz krk.",
    "Croatian": "Na trgu stoji crni pas i gleda u vrt, a iza njega je crkva s vrlo visokim tornjem.",
    "Hungarian": "A képen egy fiatal nő ül a kávézó teraszán, és könyvet olvas. Az asztalon egy "
    "csésze kávé és egy kis váza áll.",
    "Romanian": "Un bărbat în vârstă merge cu bicicleta pe un drum de țară, iar în spate se văd "
    "dealuri și o biserică mică din lemn.",
    "Turkish": "Sahilde oturan iki kişi gün batımını izliyor. Önlerinde küçük bir masa, üzerinde de "
    "iki bardak çay ve bir tabak meyve var.",
    "Vietnamese": "Một người phụ nữ đội nón lá đang chèo thuyền trên sông, phía sau là những ngọn núi "
    "đá vôi phủ sương mù buổi sáng.",
    "Indonesian": "Seorang petani berjalan di pematang sawah sambil membawa cangkul, dengan gunung "
    "berapi yang tertutup awan di latar belakang.",
    "Swahili": "Watoto wawili wanacheza mpira kwenye uwanja wa shule, na nyuma yao kuna miti mikubwa "
    "ya maembe na jua linazama.",
    "Welsh": "Mae dau gi yn rhedeg ar hyd y traeth ac mae'r môr yn las y tu ôl iddynt, gyda mynydd "
    "yn y pellter.",
    "Hawaiian": "He kahakai nani kēia me ke one keʻokeʻo a me ke kai uliuli, a aia nā kumu niu i ka "
    "ʻaoʻao hema.",
    "Russian": "На фотографии старый деревянный дом у реки. Возле забора стоит велосипед, а на "
    "крыльце спит рыжий кот.",
    "Ukrainian": "Дівчинка у вишиванці стоїть посеред поля соняхників і дивиться на захід сонця, "
    "поруч біжить собака.",
    "Greek": "Ένα μικρό λευκό εκκλησάκι με μπλε τρούλο πάνω από τη θάλασσα. Στο βάθος φαίνεται ένα "
    "πλοίο και ο ήλιος δύει.",
    "Hebrew": "ילדה קטנה יושבת על החוף ובונה ארמון מחול. מאחוריה הים הכחול ושתי סירות מפרש לבנות.",
    "Arabic": "رجل مسن يجلس أمام متجره في السوق القديم ويشرب الشاي، وخلفه سجاد ملون معلق على الجدار.",
    "Persian": "دو کودک در باغ زیر درخت انار بازی می‌کنند و مادرشان روی فرش نشسته و کتاب می‌خواند.",
    "Hindi": "एक बूढ़ा आदमी नदी के किनारे बैठा है और चाय पी रहा है। उसके पीछे मंदिर की सीढ़ियाँ दिखाई देती हैं।",
    "Bengali": "একটি ছোট মেয়ে ধানক্ষেতের পাশে দাঁড়িয়ে আছে, তার হাতে একটি লাল ঘুড়ি। পিছনে নদী ও নৌকা "
    "দেখা যাচ্ছে।",
    "Tamil": "கடற்கரையில் இரண்டு குழந்தைகள் மணல் கோட்டை கட்டுகிறார்கள். பின்னால் ஒரு மீன்பிடி படகு நிற்கிறது.",
    "Georgian": "ძველი ქვის ეკლესია დგას გორაკზე, მის უკან კი თოვლიანი მთები მოჩანს და ცაზე ღრუბლებია.",
    "Amharic": "አንዲት ሴት በገበያ ውስጥ ቡና ትሸጣለች። ከኋላዋ ብዙ ሰዎች እና ትላልቅ ዛፎች ይታያሉ። ሰማዩ ሰማያዊ ነው።",
    "Chinese": "一位老人坐在公园的长椅上看报纸，旁边有一只棕色的小狗。远处的湖面上有几只白天鹅。",
    "Chinese, short": "照片里一个穿红色雨衣的孩子在雨中踩水，身后是老街。",
    "Japanese": "夕暮れの海辺を二人の子どもが走っています。空はオレンジ色に染まり、遠くに小さな船が見えます。",
    "Korean": "가을 공원에서 한 가족이 단풍나무 아래에 앉아 도시락을 먹고 있습니다. 뒤로 호수가 보입니다.",
    "Thai": "เด็กผู้หญิงสองคนกำลังเล่นน้ำอยู่ริมทะเล ด้านหลังมีเรือประมงสีฟ้าจอดอยู่ และท้องฟ้าเป็นสีส้มยามเย็น",
    "Khmer": "ក្មេងស្រីម្នាក់កំពុងអង្គុយនៅក្រោមដើមឈើធំមួយ ហើយអានសៀវភៅ។ នៅខាងក្រោយមានផ្ទះឈើនិងវាលស្រែ។",
    "Burmese": "ကလေးနှစ်ယောက် ကမ်းခြေမှာ ကစားနေကြသည်။ နောက်ဘက်တွင် ငါးဖမ်းလှေတစ်စင်း ရှိသည်။",
}


def _letters(seed: int, length: int = 400) -> str:
    chance = random.Random(seed)
    text = "".join(chance.choice(string.ascii_lowercase + "     ") for _ in range(length))
    return " ".join(text.split())


BAD = {
    "nothing": "",
    "white space": " \n\t\u00a0 ",
    "one word": "picture",
    "end of turn": "A boat on the beach, seen from above at noon.<|im_end|>",
    "half a token": "A dog runs on the beach <| and a child follows it with a kite.<|",
    "word loop": "The picture shows a beach with " + "blue " * 60,
    "phrase loop": "The sky is blue and the sea is " + "very calm and " * 40,
    "sentence loop": "The image shows a dog on a beach. " * 30,
    "paragraph loop": f"{HONEST['German']} {HONEST['English']} {HONEST['French']} " * 6,
    "zero width": "\u200b" * 80,
    "Chinese loop": "照片里有一片蓝色的大海，" * 30,
    "Chinese word loop": "照片里有一片" + "蓝色" * 60,
    "Japanese loop": "海が見えます。" * 30,
    "Thai loop": "ทะเลสีฟ้า" * 40,
    "Korean loop": "파란 바다가 보입니다. " * 30,
    "Russian loop": "На фотографии море. " * 30,
    "punctuation": "!!!! ???? .... ---- #### !!!! ???? .... ---- #### !!!!" * 3,
    "digits": "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 " * 2,
    "base64": base64.b64encode(bytes(range(256))).decode(),
    "base64 in lines": "\n".join(
        base64.b64encode(random.Random(i).randbytes(27)).decode() for i in range(8)
    ),
    "hexadecimal": random.Random(3).randbytes(120).hex(),
    "random case": "".join(random.Random(4).choices(string.ascii_letters + "   ", k=300)),
    "letters and digits": "".join(
        random.Random(5).choices(string.ascii_letters + string.digits + "  ", k=300)
    ),
    "keyboard": "asdfgh jklqwrt zxcvbn mnbvcx hgfdsa qwrtpl sdfghjk xcvbnm lkjhgf dsfghj",
    "mixed scripts": "the 海边 собака שלום boat 空色 медведь ילדה house 風景 улица ים tree 東京 река",
    "JSON": json.dumps({"description": "A dog on a beach", "tags": ["dog", "beach"], "ok": True}),
    "truncated JSON": '{"description": "A dog runs along the beach and a child',
    "JSON in a fence": '```json\n{"description": "A dog runs along the beach and a child follows"}',
    "list of objects": '[{"label": "dog", "score": 0.93}, {"label": "beach", "score": 0.88}, {"la',
}


def names(result: AuditResult) -> list[str]:
    return [penalty.name for penalty in result.penalties]


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_honest_text_passes_in_every_language(text: str) -> None:
    result = audit(text)

    assert result.passed, result.penalties


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_a_long_honest_text_passes_in_every_language(text: str) -> None:
    # Other real texts are added for the length: a repeated text would fail.
    result = audit(" ".join([text, *HONEST.values()])[:5000])

    assert "few_unique_words" not in names(result)
    assert "repeated_phrase" not in names(result)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_output_fails(text: str) -> None:
    result = audit(text)

    assert not result.passed, result


@pytest.mark.parametrize("seed", range(30))
def test_random_letters_fail(seed: int) -> None:
    assert not audit(_letters(seed)).passed


# Boundaries ---------------------------------------------------------------------------------------

#: 50 characters, 9 words, no fault.
PLAIN = "A red bicycle leans against a white wall of brick."


def test_a_good_text_has_the_full_score() -> None:
    assert audit(PLAIN) == AuditResult(100, True, ())


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_text_scores_nothing(text: str) -> None:
    result = audit(text)

    assert (result.score, result.passed, names(result)) == (0, False, ["empty"])


@pytest.mark.parametrize(
    ("tail", "score"), [("", 100), (" <|", 50), (" |>", 50), (" <| <| <|", 50), (" <|end|>", 0)]
)
def test_each_kind_of_control_token_costs_50_once(tail: str, score: int) -> None:
    assert audit(PLAIN + tail).score == score


def test_shorter_than_50_characters_costs_30() -> None:
    assert len(PLAIN) == 50
    assert audit(PLAIN).score == 100
    shorter = audit(PLAIN.replace("red", "re"))
    assert (shorter.score, names(shorter)) == (70, ["too_short"])


def test_twenty_han_characters_are_as_long_as_fifty_latin_ones() -> None:
    text = "照片里一个穿红雨衣的孩子在雨中踩水身后"

    assert len(text) == 19
    assert names(audit(text)) == ["too_short"]
    assert names(audit(text + "有")) == []


def test_longer_than_5000_characters_costs_20() -> None:
    words = [f"{a}{b}{c}" for a in ("ba", "de", "fi") for b in ("lo", "mu") for c in ("na", "ri")]
    chance = random.Random(1)
    text = "The end. " + " ".join("".join(chance.sample(words, 2)) for _ in range(2000))

    assert names(audit(text[:4999] + "a")) == []
    longer = audit(text[:5000] + "a")
    assert (longer.score, names(longer)) == (80, ["too_long"])


def test_fewer_than_a_fifth_unique_words_costs_40() -> None:
    unique = ["the", "quiet", "harbour", "sleeps", "under"]
    chance = random.Random(2)
    fifth = unique * 5
    chance.shuffle(fifth)
    text = " ".join(fifth) + "."

    assert len(fifth) == 25
    assert "few_unique_words" not in names(audit(text))
    below = audit(text + " Under.")
    assert (below.score, names(below)) == (60, ["few_unique_words"])


def test_the_same_word_four_times_in_a_row_costs_35() -> None:
    start = "The child calls and calls again across the wide field:"

    assert names(audit(f"{start} come come come now.")) == []
    four = audit(f"{start} come Come, come come now.")
    assert (four.score, names(four)) == (65, ["repeated_word"])


def test_the_same_phrase_four_times_in_a_row_costs_35() -> None:
    start = "The child calls and calls again across the wide field:"

    assert names(audit(f"{start} {'come home ' * 3} now.")) == []
    four = audit(f"{start} {'come home ' * 4} now.")
    assert (four.score, names(four)) == (65, ["repeated_phrase"])


def test_more_than_30_percent_symbols_cost_25() -> None:
    letters = "the quiet harbour sleeps under a wide sky of grey and pale blue light"  # 69
    at_most = letters + "a" + "*" * 30
    more = letters + "*" * 30

    assert len(at_most) == 100
    assert names(audit(at_most)) == []
    assert (audit(more).score, names(audit(more))) == (75, ["symbols"])


def test_vowel_signs_and_accents_are_not_symbols() -> None:
    assert names(audit(HONEST["Hindi"])) == []
    assert names(audit("e\u0301te\u0301 a\u0300 la mer " * 3 + "avec le bateau et le chien.")) == []


def test_words_without_a_sentence_cost_15() -> None:
    words = "the boat lies on a quiet beach and two children walk towards the calm water with a dog"

    assert len(words.split()) == 18
    assert names(audit(f"{words} now")) == []
    assert names(audit(f"{words} right now")) == ["no_sentence"]
    assert names(audit(f"{words} right now.")) == []


def test_fewer_than_three_words_cost_15_beside_their_shortness() -> None:
    assert names(audit("A dog.")) == ["too_short", "no_sentence"]
    assert not audit("A dog.").passed
    assert names(audit("A dog runs.")) == ["too_short"]


def test_latin_text_without_any_everyday_word_costs_15() -> None:
    words = "harbour boat gull rope wave sail stone cloud window lantern ladder"

    assert names(audit(words)) == []
    assert names(audit(f"{words} bucket")) == ["no_common_words"]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I can't help with identifying or describing the people in this picture.",
        "I\u2019m unable to view images, but if you describe it to me, I can help you further.",
        "Sorry, but I cannot assist with that request. Is there anything else that I can do?",
        "As an AI language model, I cannot see pictures that are shared with me here.",
        "Es tut mir leid, aber bei der Beschreibung dieses Bildes kann ich nicht helfen.",
        "Je suis désolée, mais je ne peux pas décrire les personnes sur cette image.",
        "很抱歉，我无法描述这张图片中的人物，因为这可能涉及隐私和安全方面的问题。",
        "申し訳ありませんが、この画像に写っている人物について説明することはできません。",
    ],
)
def test_a_refusal_is_not_a_description(text: str) -> None:
    result = audit(text)

    assert (result.score, names(result)) == (55, ["refusal"])
    assert not result.passed


REFUSALS = [
    # English: declined
    "I'm not comfortable responding to this.",
    "I'm not going to engage in this conversation topic.",
    "I don't feel comfortable describing this image, as it may show a private person.",
    "I don't think I should describe this picture, because it shows a private person.",
    "I do not have the ability to view images. Please provide a description of the picture.",
    "I must decline to describe this picture, because it may violate the policy.",
    "I'd rather not describe the people in this photo, because they may be private persons.",
    "I'm just an AI assistant and cannot look at the picture that you have sent to me.",
    "I appreciate you sharing this image, but I can't identify people based on their faces.",
    "Thank you for the image. However, I am unable to describe it because of our policy.",
    "I understand your request, but I cannot describe the people in this picture.",
    "We're sorry, but this content cannot be described due to our policies.",
    "Sorry, but this request is against the policy. I can help with something else.",
    "Unfortunately, we are unable to process this picture. Please try another one later.",
    "I **can't** help with this picture, because it shows private information.",
    # English: what speaks
    "As a language model, I am unable to view pictures, but I can help with text.",
    "As a large vision-language model, I do not describe the faces of real people here.",
    "As an AI, I do not describe people. I can help with other parts of the picture.",
    "As an AI assistant developed by a company, I do not describe people in pictures.",
    # English: no picture
    "I don't see any image attached to your message. Could you please upload the picture?",
    "I don't see an image. Please send the picture that I should describe for you.",
    "It looks like the image didn't come through. Please upload it again, then I will look.",
    "It seems that the photo you sent has not been uploaded. Please try it once more.",
    "It looks like you haven't attached a picture. Please send it once more to me.",
    "It seems you forgot to upload the photo. Please send it, and I will describe it.",
    "It looks like you may have forgotten to share the picture. Please send it once more.",
    "It seems that no image was provided. Please send the picture that I should describe.",
    "It appears there is no image attached to your message, so please send it again.",
    "There is no image provided. Please share the picture that you want me to describe.",
    "There was no picture in your message. Please share it, and I will describe it.",
    "No image was provided. Please share the picture that you want me to describe.",
    "The image cannot be displayed or processed. Please try again with another file.",
    "Please provide the image that you would like me to describe, and I will help.",
    # Markdown and labels
    "**I'm sorry**, but I can't help with identifying people in pictures like this one.",
    "# I cannot describe this image",
    "> I cannot describe this image, because it may show a private person in it.",
    "Description: I'm sorry, but I can't assist with that request at all.",
    "**Description:** I'm sorry, but I can't assist with that request at all.",
    "描述：很抱歉，我无法描述这张图片中的人物，因为这可能涉及隐私和安全方面的问题。",
    # German, French, Spanish, Italian, Portuguese, Dutch, Polish
    "Leider kann ich dieses Bild nicht beschreiben, da es gegen die Richtlinien verstößt.",
    "Ich kann Ihnen bei dieser Anfrage leider nicht helfen. Bitte laden Sie ein anderes Bild hoch.",
    "Ich kann dieses Bild nicht beschreiben, weil es gegen die Richtlinien verstößt.",
    "Als KI-Sprachmodell kann ich keine Bilder ansehen, aber ich helfe gern mit Texten.",
    "Je ne peux pas vous aider avec cette demande. Veuillez fournir une autre image.",
    "Désolé, je ne peux pas décrire cette image, car elle montre une personne privée.",
    "Désolé, mais cette demande est contraire à nos règles, et je dois la refuser.",
    "Je suis désolé, cette demande est contraire aux règles. Envoyez une autre image.",
    "En tant qu'intelligence artificielle, je ne décris pas les visages des personnes.",
    "No puedo ayudar con esta solicitud. Por favor, proporcione otra imagen.",
    "Lo siento, pero no puedo describir a las personas que aparecen en esta imagen.",
    "Como modelo de lenguaje, no veo las imágenes, pero puedo ayudar con los textos.",
    "Non posso descrivere questa immagine, perché mostra una persona che non è pubblica.",
    "Purtroppo non sono in grado di descrivere le persone che sono in questa immagine.",
    "Infelizmente, não posso descrever esta imagem, porque mostra uma pessoa privada.",
    "Não consigo ver a imagem que você enviou. Por favor, envie a imagem outra vez.",
    "Ik kan deze afbeelding niet beschrijven, omdat er een persoon op te zien is.",
    "Helaas kan ik je hier niet mee helpen. Stuur me alsjeblieft een andere afbeelding.",
    "Niestety, nie mogę opisać tego zdjęcia, ponieważ przedstawia osobę prywatną.",
    "Jako model językowy nie widzę zdjęć, ale chętnie pomogę w pracy z tekstem.",
    # Russian, Chinese, Japanese
    "К сожалению, я не могу помочь с этим запросом. Пожалуйста, загрузите другое изображение.",
    "Извините, но я не могу описать это изображение, так как оно нарушает правила.",
    "Я не могу просматривать изображения, но могу помочь с текстом и с вопросами.",
    "我无法查看这张图片，请您重新上传一张图片，谢谢您的理解和支持。",
    "作为一个人工智能语言模型，我无法直接查看图片，因此不能描述它的内容。",
    "很遗憾，我不能描述这张图片中的人物，因为这可能涉及隐私和安全方面的问题。",
    "すみませんが、この画像についてはお手伝いできません。別の画像をアップロードしてください。",
    "残念ながら、この画像について説明することはできません。別の画像をアップロードしてください。",
    "AI言語モデルとして、画像を直接見ることはできませんが、文章についてはお手伝いできます。",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_text_about_the_request_is_a_refusal(text: str) -> None:
    result = audit(text)

    assert "refusal" in names(result)
    assert not result.passed


ABOUT_A_PICTURE = [
    '"I\'m sorry, we are closed" is written on a sign in the window of a shop.',
    "Sorry is written in the sand of a beach, in large letters, next to a boat.",
    "Sorry-looking dog with wet fur stands in the rain in front of a closed door.",
    "A sign reads 'I'm sorry, we are closed', in red letters on a white board.",
    "A screenshot of a chat with an assistant that says: I cannot describe this image.",
    'Description: "I can\'t wait" is printed on the shirt of a child on a swing.',
    "I see a dog on a beach. It runs towards the water, and a child follows it.",
    "I can see a dog on a beach. It runs towards the water, and a child follows it.",
    "I don't see any people, only a dog on a beach that runs towards the water.",
    "I don't see any pictures on the wall, only two empty frames above a sofa.",
    "There is no image on the wall, only an empty frame and a nail beside it.",
    "There is no picture attached to the board, only four pins and a paper strip.",
    "No image can convey how wide the valley is, with its river and its forests.",
    "No pictures are attached to the cork board in the office, only some pins.",
    "No photo is provided on the form, a passport application with empty fields.",
    "It looks like the image was taken at sunset: the sky is red above the sea.",
    "It looks like the picture was included in a calendar: below it are the days of May.",
    "It seems that the photo is not in focus, but a dog and a ball can be seen.",
    "It looks like you have not set a PIN yet, says the screen of a phone on a table.",
    "It seems you forgot your umbrella, says an advert in the window of a small shop.",
    "No images uploaded yet, says the screen of a gallery app, above a blue button.",
    "There are no photos uploaded yet. A blue button below says that one can be added.",
    "It looks like you are standing on a tower: far below, cars drive along a road.",
    "The image is not sharp, but a brown dog on a beach can be seen in the middle.",
    "The image cannot hide its age: it has scratches, and a family in old clothes.",
    "The image could not be more colourful: balloons of all kinds fill the sky.",
    "Unfortunate weather: a couple under an umbrella looks at a flooded street.",
    "Unfortunately blurred, the picture shows a cyclist on a bridge in the rain.",
    "Thank you for the image. It shows a brown dog that runs along a beach.",
    "Thank you is written on a card, but the name below it cannot be read.",
    "As an AI-generated picture would, it shows a hand with six fingers and a ring.",
    "As a language teacher points at the board, the pupils of a class look up.",
    "As a fashion model walks along, photographers at both sides lift cameras.",
    "As an AI robot assistant rolls by, two visitors of a fair take photos of it.",
    "Please provide your own cup, says a sign above a coffee machine in an office.",
    "We are sorry for the noise, says a board at a building site beside a road.",
    "Notes of music and a guitar lie on a table beside a window with a red curtain.",
    "Leider ist das Bild unscharf, aber ein Hund am Strand ist gut zu erkennen.",
    "Ich sehe einen Hund, der am Strand entlang läuft und nicht nass geworden ist.",
    "Als KI generiertes Bild zeigt es eine Hand mit sechs Fingern und einem Ring.",
    "Malheureusement floue, la photo montre un cycliste sur un pont sous la pluie.",
    "Désolée, la rue est vide sous la pluie, avec des volets fermés et un chien mouillé.",
    "Aucune image ne montre mieux la vallée, avec sa rivière et ses grandes forêts.",
    "No hay ninguna imagen en la pared, solo un marco vacío y un clavo oxidado.",
    "Non ci sono persone sulla spiaggia, solo un cane che corre verso il mare.",
    "Não há pessoas na praia, apenas um cão que corre em direção ao mar azul.",
    "Als een grote hond op het strand rent, kijkt een kind met een vlieger toe.",
    "Nie ma ludzi na plaży, tylko pies biegnie w stronę morza przy zachodzie.",
    "К сожалению, снимок размыт, но видно собаку, которая бежит по пляжу к морю.",
    "Как ИИ рисует руки: на картинке рука с шестью пальцами и с кольцом на одном.",
    "作为人工智能展览的一部分，一台白色的机器人站在大厅中央，旁边有许多参观者。",
    "我们看到一位老人坐在公园的长椅上看报纸，旁边有一只棕色的小狗和一个背包。",
    "この写真の中央に立つ人物の顔は、逆光のため確認できませんが、赤い傘を持っています。",
    "残念ながら雨の日の遊園地で、観覧車は止まり、傘をさした親子が門の前に立っています。",
]


@pytest.mark.parametrize("text", ABOUT_A_PICTURE)
def test_a_text_about_the_picture_is_not_a_refusal(text: str) -> None:
    result = audit(text)

    assert "refusal" not in names(result)
    assert result.passed


def test_every_penalty_says_its_figures() -> None:
    assert audit("Short.").penalties[0].reason == "The text has 6 characters, fewer than 50."


@given(st.text(max_size=400) | st.text(st.sampled_from("ab <|>.,\n海का"), max_size=400))
def test_any_text_gets_a_score_from_0_to_100(text: str) -> None:
    result = audit(text)

    assert 0 <= result.score <= 100
    assert result.passed == (result.score >= PASS_SCORE)
    assert result.score == max(0, 100 - sum(penalty.points for penalty in result.penalties))


def test_a_megabyte_is_judged_quickly_enough_to_finish() -> None:
    assert not audit("a" * 1_000_000).passed
    assert not audit("海" * 300_000).passed


# Language -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HONEST)
def test_another_language_than_the_one_asked_for_fails(name: str) -> None:
    result = audit(HONEST[name], "ja" if name.startswith("English") else "en")

    assert not result.passed
    assert "wrong_language" in names(result)


def test_any_language_passes_if_none_was_asked_for() -> None:
    assert audit(HONEST["Finnish"]).score == audit(HONEST["Finnish"], "fi").score == 100
    assert audit(HONEST["Finnish"], "de").penalties[0].reason == (
        "The text is in Finnish, but German was asked for."
    )
