"""Recognises answers in which a model declines, or says that it sees no picture.

Such a text is about the request, not about the picture. Only its beginning is checked, because a
description may quote the same words from a sign or a screen. A description that is mistaken for a
refusal fails its upload, so each pattern needs words that only a speaker uses: "I", "we", what an
assistant cannot do, or what is missing in a message.
"""

import re
from functools import cache
from itertools import chain

#: Markdown and labels before the first word. Not quotation marks: a picture may show an apology.
_LEAD = re.compile(
    r"(?:[\s*_#>~-]|(?:description|caption|answer|response|output|assistant|note|beschreibung"
    r"|antwort|réponse|descripción|respuesta|descrizione|risposta|descrição|resposta|beschrijving"
    r"|antwoord|opis|описание|ответ|描述|回答|説明)[\s*_]*[:：])*",  # noqa: RUF001
    re.IGNORECASE,
)
#: Much longer than any opening below (characters).
_LONGEST_OPENING = 300

_PICTURE = r"(?:image|picture|photo|photograph|file|attachment|screenshot|upload)s?"
_ARTICLE = r"(?:an?|any|the|your|this|no)"
_YOU_SENT = r"(?: you \w+(?: \w+)?)?"
_IN_THE_REQUEST = (
    r"(?:in|to|with) (?:your|this|the|our) (?:message|request|conversation|chat|prompt|query)"
)
#: Not "attached to the wall", nor "uploaded yet", which the screen of an app says.
_ATTACHED = (
    r"(?:attached|provided|included|uploaded|shared|supplied)"
    rf"(?:[.,;!]|$| (?:(?<!uploaded )yet|here|so|to describe|for me|{_IN_THE_REQUEST})\b)"
)
_TO_DESCRIBE = r"to (?:describe|analy[sz]e|look|view)\b"
_CANNOT_BE = r"(?:could|can)(?:n't|not| not) be (?:loaded|displayed|processed|opened|analy[sz]ed)"
_SEEMS = r"it (?:looks|seems|appears) (?:like |that |as if |as though )?"
_APOLOGY = r"(?:we(?:'re| are) (?:very |so )?sorry|sorry|(?:my )?apologies)"
_BAD_LUCK = r"(?:unfortunately|regrettably|sadly)"
_DO_NOT = r"(?:don'?t|do not) (?:actually |currently )?"

#: The speaker declines.
_DECLINE = "|".join(
    (
        r"i(?:'m| am) (?:(?:very|so|really|truly|deeply|terribly) )?(?:sorry|afraid)\b",
        r"i(?:'m| am) (?:currently |unfortunately )?(?:unable|not able|incapable)\b",
        r"i(?:'m| am) not (?:really )?(?:comfortable|going to|allowed|permitted|in a position)\b",
        r"i(?:'m| am) not (?:equipped|designed|programmed|capable|authori[sz]ed|willing)\b",
        r"i(?:'m| am) (?:just |only )?an? (?:[\w-]+ ){0,3}?(?:ai|language model|assistant)\b",
        r"i (?:really |simply |just )?(?:can'?t|cannot|can not|won'?t|will not)\b",
        rf"i {_DO_NOT}feel (?:\w+ )?comfortable\b",
        rf"i {_DO_NOT}think (?:i|it|that) (?:can|should|is appropriate|would be)\b",
        rf"i {_DO_NOT}have (?:the (?:ability|capability|capacity)|access|permission)\b",
        rf"i {_DO_NOT}(?:see|have|find) {_ARTICLE} {_PICTURE}"
        rf"(?: (?:{_ATTACHED}|{_IN_THE_REQUEST}\b|{_TO_DESCRIBE})|[.,;!])",
        r"i (?:must|have to|need to|would have to) (?:respectfully |politely )?decline\b",
        r"i(?:'d| would)? (?:rather not|prefer not to|refuse to|decline to)\b",
        r"i apologi[sz]e\b",
    )
)
#: Patterns of openings, by language.
_OPENINGS = {
    "English": (
        _DECLINE,
        rf"(?:sorry|{_BAD_LUCK})[,.!]? (?:but )?i\b",
        rf"(?:{_APOLOGY}|{_BAD_LUCK}),? (?:but )?we (?:can'?t|cannot|are (?:unable|not able))\b",
        rf"{_APOLOGY},? but (?:that|{_ARTICLE} (?:image|picture|photo|content|request|file))\b",
        r"(?:my )?apologies,? (?:but )?(?:for|i)\b",
        # A courtesy, then the refusal.
        r"(?:thank(?:s| you)|i (?:appreciate|understand))\b[^\n]{0,120}?[,.!;] "
        rf"(?:but|however|unfortunately)\b,? (?:{_DECLINE})",
        # The speaker names what it is. "As an AI-generated picture" names the picture.
        r"as an? (?:ai|(?:[\w-]+[ -]){0,3}?(?:ai|language)(?:[ -][\w-]+){0,2}?"
        r"[ -](?:model|assistant|system|chatbot))"
        r"(?:,| (?:i|my|developed|trained|created|made|designed|without|that)\b)",
        # The request has no picture, or not one that can be opened.
        rf"(?:{_SEEMS})?(?:the|your|this) {_PICTURE}{_YOU_SENT} "
        r"(?:did(?:n't| not) (?:come through|load|upload|attach)"
        rf"|failed to (?:load|upload)|{_CANNOT_BE})",
        rf"{_SEEMS}(?:the|your|this) {_PICTURE}{_YOU_SENT} (?:was|were|has|have)(?:n't| not) "
        r"(?:been )?(?:attached|uploaded|included|provided|loaded|received)\b",
        rf"{_SEEMS}you (?:may |might )?(?:have(?:n't| not| forgotten)|did(?:n't| not)|forgot)"
        r"(?: \w+){0,3}? (?:attach|upload|provid|includ|shar|sen[dt])",
        rf"(?:{_SEEMS})?there (?:is|was|are|were|seems to be|appears to be) (?:currently )?no "
        rf"{_PICTURE} (?:{_ATTACHED}|{_IN_THE_REQUEST}\b|for me\b|{_TO_DESCRIBE}"
        r"|(?:available|visible|accessible) to me\b)",
        rf"(?:{_SEEMS})?no {_PICTURE} "
        rf"(?:(?:was|were|is|has been|seems to be|appears to be) )?{_ATTACHED}",
        r"(?:please|could you|can you|kindly) (?:please )?(?:re-?)?"
        r"(?:upload|provide|share|attach|send) (?:me )?(?:with )?"
        rf"(?:{_ARTICLE}|another) (?:[\w-]+ )?{_PICTURE}\b",
    ),
    "German": (
        r"es tut mir (?:sehr |wirklich )?leid\b|tut mir (?:sehr )?leid,",
        r"(?:entschuldigung|entschuldigen sie|verzeihung),? (?:aber )?ich\b",
        r"leider (?:(?:kann|darf|bin|habe|sehe) ich|(?:können|dürfen) wir|ist es mir nicht)\b",
        # Only words that are about the request may stand before "nicht".
        r"ich (?:kann|darf|werde|möchte) (?:(?:ihnen|dir|euch|bei|dabei|hierbei|damit|dies|das|die"
        r"|den|dieses?|dieser|diesem|bild|foto|anfrage|inhalt|personen?) ){0,6}(?:nicht|leider)\b",
        r"ich bin (?:leider )?nicht (?:in der lage|befugt|berechtigt)\b",
        r"ich sehe kein(?:en)? (?:bild|foto|anhang)[.,]",
        r"als (?:ein )?(?:großes )?(?:ki-)?(?:sprachmodell|ki-modell|ki-assistent)\b",
        r"als (?:ki|künstliche intelligenz)(?:,| (?:kann|bin|darf|habe)\b)",
    ),
    "French": (
        r"(?:je suis|nous sommes) (?:vraiment |sincèrement )?désolée?s?,",
        # Alone it also means "desolate".
        r"(?:vraiment |sincèrement )?désolée?s?,? (?:mais|je|j|nous)\b",
        r"(?:malheureusement,? )?je ne (?:peux|puis) (?:malheureusement )?pas\b",
        r"(?:malheureusement,? )?je ne suis pas (?:en mesure|capable|autorisée?)\b",
        r"(?:malheureusement,? )?je n'ai pas (?:accès|la (?:capacité|possibilité))\b",
        r"en tant qu(?:e |')(?:ia\b|intelligence artificielle|modèle (?:de lang|ling|d'ia)"
        r"|grand modèle|assistant (?:ia|virtuel))",
        r"aucune (?:image|photo) n'a été (?:jointe|fournie|partagée|téléchargée|transmise)\b",
    ),
    "Spanish": (
        r"lo (?:siento|lamento)(?: mucho)?,",
        r"(?:(?:lamentablemente|desafortunadamente|disculpa|disculpe|perdón),? (?:pero )?)?"
        r"no (?:puedo|podemos|me es posible|soy capaz de|estoy autorizad[oa])\b",
        r"no tengo (?:la capacidad|acceso|permiso)\b",
        r"como (?:un )?(?:gran )?(?:modelo de (?:lenguaje|ia)|asistente (?:de ia|virtual))\b",
        r"como (?:una )?(?:ia|inteligencia artificial),",
    ),
    "Italian": (
        r"mi dispiace,",
        r"(?:purtroppo,? )?non (?:posso|possiamo|sono in grado|mi è possibile)\b",
        r"(?:purtroppo,? )?non (?:riesco a vedere l|ho (?:accesso|la (?:capacità|possibilità))\b)",
        r"(?:come|in quanto) (?:un )?(?:modello (?:linguistico|di lingu|di ia)"
        r"|assistente (?:ia|virtuale))",
        r"(?:come|in quanto) (?:ia|intelligenza artificiale),",
    ),
    "Portuguese": (
        r"(?:desculpe|desculpa|sinto muito|lamento|peço desculpas?),",
        r"(?:infelizmente,? )?(?:eu )?não (?:posso|consigo|sou capaz de|estou autorizad[oa])\b",
        r"(?:infelizmente,? )?(?:eu )?não tenho (?:a capacidade|acesso|permissão)\b",
        r"como (?:um )?(?:grande )?(?:modelo de (?:linguagem|ia)|assistente (?:de ia|virtual))\b",
        r"como (?:uma )?(?:ia|inteligência artificial),",
    ),
    "Dutch": (
        r"het spijt (?:me|mij)\b|sorry,? (?:maar )?ik\b",
        r"helaas (?:(?:kan|mag|ben|zie) ik|kunnen we)\b",
        r"ik (?:kan|mag) (?:(?:u|je|jou|hier|deze|dit|die|dat|de|het|bij|mee|met|afbeelding|foto"
        r"|verzoek|inhoud|persoon|personen|mensen) ){0,6}(?:niet|helaas)\b",
        r"ik ben (?:helaas )?niet (?:in staat|bevoegd)\b",
        r"als (?:een )?(?:groot )?(?:taalmodel|ai-(?:taal)?model|ai-assistent)\b",
        r"als ai(?:,| (?:kan|ben|heb)\b)",
    ),
    "Polish": (
        r"(?:bardzo )?(?:przykro mi|przepraszam),",
        r"(?:niestety,? )?nie (?:mogę|możemy|jestem w stanie|potrafię)\b",
        r"(?:niestety,? )?nie mam (?:możliwości|dostępu|uprawnień)\b",
        r"jako (?:duży )?(?:model (?:językowy|ai|si)|asystent (?:ai|si|wirtualny))\b",
        r"jako (?:ai|si|sztuczna inteligencja),",
    ),
    "Russian": (
        r"(?:к сожалению|извините|простите|прошу прощения|сожалею|мне (?:очень )?жаль)[,.]? "
        r"(?:но )?(?:(?:я|мы) (?:не|вынужден)|не могу\b|не можем\b)",
        r"я не (?:могу|умею|имею|способ|в состоянии)",
        r"я не вижу (?:прикрепл\w+ |ваше\w+ )?(?:изображени|картинк|фотографи)\w+[.,]",
        r"как (?:(?:большая )?языковая модель|ии-(?:модель|ассистент))",
        r"как (?:ии|искусственный интеллект),",
    ),
    "Chinese": (
        r"(?:非常|十分|很)?抱歉|[对對]不起",
        r"(?:很遗憾|很遺憾|不好意思|遗憾的是|遺憾的是)[,，]?我",  # noqa: RUF001
        r"我(?:目前|现在|現在|暂时|暫時)?(?:无法|無法|不能|不可以|[没沒]有?[办辦]法|[没沒]有能力)",
        r"我(?:看不到|[没沒]有?看到|[没沒]有?收到)(?:[您你任何上传傳发發送提供的])*"
        r"(?:图片|圖片|图像|圖像|照片)[,，。]",  # noqa: RUF001
        r"作[为為](?:一[个個款名])?(?:ai|人工智[能慧])?(?:大型?)?(?:语言|語言)模型",
        r"作[为為](?:一[个個款名])?(?:ai|人工智[能慧])(?:模型|助手|助理|[,，])",  # noqa: RUF001
    ),
    "Japanese": (
        r"(?:大変|誠に)?申し訳(?:ありません|ございません)|すみませんが",
        r"(?:すみません|ごめんなさい|残念ながら)、?(?:私|お手伝い"
        r"|(?:この)?(?:画像|写真|リクエスト)(?:について|に関して|を|に))",
        r"私は?(?:画像|写真)を(?:直接)?(?:見る|認識|表示|閲覧)[^。\n]{0,12}(?:できません|出来ません)",
        r"(?:この|その)(?:画像|写真|リクエスト)[^。\n]{0,12}(?:説明|お手伝い|お答え|対応)"
        r"(?:する)?(?:こと)?(?:は|が)?(?:できません|出来ません|いたしかねます|できかねます)",
        r"(?:私は)?(?:ai|大規模)(?:言語モデル|アシスタント)?(?:として、|なので、|であるため)",
    ),
    "Korean": (r"죄송(?:합니다|하지만)",),
}


@cache
def _openings() -> re.Pattern[str]:
    """Compile all openings. This takes 15 to 25 ms, which most commands need not spend."""
    return re.compile("|".join(chain.from_iterable(_OPENINGS.values())), re.IGNORECASE)


def preload() -> None:
    """Compile the patterns, so that processes that are forked later have them."""
    _openings()


def refusal_in(text: str) -> str:
    """Return the words with which a text declines to describe a picture; empty if it does not."""
    lead = _LEAD.match(text)
    begin = lead.end() if lead else 0
    opening = text[begin : begin + _LONGEST_OPENING].replace("\u2019", "'").replace("*", "")
    found = _openings().match(opening)
    return found[0] if found else ""
