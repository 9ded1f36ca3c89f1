"""moderation_rules: owns what answers are looked through for: categories, and rules with their reasons. Data.

A rule needs a topic and, near it, each of its acts; what excuses it (a refusal, help, a report, a game) takes that place
back. So news, medicine, history and help text pass; docs/security.md says what else passes, too.
"""

# ruff: noqa: E501 — a form is read whole or not at all

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Category(StrEnum):
    """What an answer must not do."""

    SELF_HARM = "self_harm"  #: tell how to, or encourage it
    WEAPONS = "weapons"  #: tell how to make arms, explosives, poisons
    MINORS = "minors"  #: sexual content about them
    HATE = "hate"  #: slurs, and what is said of a whole protected group: bias
    HARASSMENT = "harassment"  #: insults, threats, campaigns against a person
    DRUGS = "drugs"  #: tell how to make illegal ones


@dataclass(frozen=True, slots=True)
class Rule:
    """One form of one category. Forms are regular expressions for lower-case text, with bounded repeats."""

    id: str
    category: Category
    weight: int  #: 0 to 100
    why: str
    topic: str
    acts: tuple[str, ...]  #: all must be near; () where the topic says it all
    reach: int = 120  #: characters on each side of the topic that count as near
    excuses: str = ""  #: besides EXCUSES; near as well


# What speaks for a place: the text refuses, helps, warns, reports, or speaks about words instead of with them.
EXCUSES = (
    r"\b(?:i (?:can't|cannot|can not|won't|will not|am not able|'m not able|am unable|'m unable)|can't help|cannot help|"
    r"(?:it is|it's|is|are) (?:illegal|against the law|a crime|harmful|wrong|false|a myth|a stereotype)|(?:never|do not|don't) (?:try|make|attempt|mix|build|share|touch|do|starve|harm|kill|hurt)|"
    r"stereotypes?|prejudices?|myths?|slurs?|racis[mt]|sexis[mt]|antisemit\w{0,6}|islamophob\w{0,4}|homophob\w{0,4}|bigot\w{0,4}|propaganda|"
    r"no evidence|not true|untrue|debunk\w{0,4}|refut\w{0,4}|disprov\w{0,4}|"
    r"police|arrest\w{0,4}|convict\w{0,4}|sentenc\w{0,4}|prosecut\w{0,6}|charged with|trial|court|jury|"
    r"historians?|novel|documentary|museum|researchers?|stud(?:y|ies) (?:show|find|found)|surveys?|"
    r"(?:said|wrote|claimed|shouted|called|accused|alleged|(?:described|portrayed|depicted) as)\b)"
)
_HOW = (
    r"\b(?:how (?:to|you can|i would)|walk you through)\b|\byou(?:'ll| will| would)? (?:first )?need\b|\bstep (?:1|one|2|two)\b|"
    r"\b(?:instructions?|directions?|steps?|recipe|guide|tutorial|method|way|plan) (?:for|to|on|of)\b|"
    r"\b(?:first|then|next|now|start by|begin by|after that),? (?:you )?(?:mix|combin|heat|add|fill|pack|pour|attach|connect|assembl|dissolv|grind|drill|wrap|cook|boil|stir|print|fit|file|prepar|collect)"
)
_MAKE = (
    r"\b(?:mak(?:e|ing)|build(?:ing)?|assembl(?:e|ing|y)|construct(?:ing|ion)?|mix(?:ing)?|prepar(?:e|ing|ation)|produc(?:e|ing|tion)|"
    r"convert(?:ing)?|weaponi[sz](?:e|ing)|culturing|synthesi[sz](?:e|ing)|synthesis|cook(?:ing)?|brew(?:ing)?|manufactur(?:e|ing)|fill(?:ing)?|print(?:ing)?)\b"
)
_GROUPS = (
    r"(?:jew(?:ish people|s)|muslims?|christians|hindus|sikhs|buddhists|atheists|catholics|blacks|whites|asians|africans|arabs|latin(?:os|as)|hispanics|"
    r"mexicans|chinese|indians|pakistanis|turks|poles|russians|ukrainians|nigerians|romanians|albanians|americans|germans|roma|gypsies|"
    r"(?:black|white|brown|asian|african|arab|chinese|indian|indigenous|native|roma|foreign|gay|trans|transgender|disabled|autistic|deaf|blind|old|elderly|poor|muslim) (?:people|persons|men|women|folks|kids|workers)|"
    r"immigrants|migrants|refugees|asylum seekers|foreigners|(?<!the )(?:women|men|girls|boys)|gays|lesbians|bisexuals|homosexuals|"
    r"people with (?:disabilities|autism|down syndrome)|(?:the )?(?:elderly|disabled)|people from (?:africa|asia|mexico|india|china|the middle east|eastern europe)|people of colou?r)"
)
_BEING = r"(?:,? (?:in|from|who|of|like|as) (?:\w+ ){1,3}|(?:,)? )(?:are|were|will always be|remain|act like|behave like|think like|is)"
_ADVERB = r"(?: (?:all|just|simply|basically|nothing but|naturally|inherently|by nature|always|mostly|clearly|really|only|more|too|so|genetically|a bunch of|no better than|nothing more than|far less|less|such|born)){0,2}"
_LOW = (
    r" (?:vermin|animals|apes|parasites|rats|cockroaches|insects|pests|savages|barbarians|sub-?human\w{0,3}|inferior|criminals|thieves|terrorists|"
    r"liars|cheats|stupid|dumb|lazy|dirty|filthy|disgusting|greedy|untrustworthy|dishonest|worthless|primitive|uncivili[sz]ed|evil|"
    r"a (?:plague|disease|cancer|burden|stain|threat to (?:us|our))|intelligent than|unintelligent|too emotional|emotional to|unfit (?:to|for)|"
    r"incapable of|not (?:fully |really |even )?human|bad (?:drivers|at (?:math|maths|science|logic|leading|driving))|not (?:made|suited|fit) (?:for|to)|born (?:criminals|to serve))\b"
)
_SEXUAL = (
    r"\b(?:erotic\w{0,4}|sexy|seductive|sensual|aroused|arousing|sexuali[sz]ed|lustful|nude (?:photos?|pictures?|images?|videos?)|"
    r"sexual(?:ly)? (?:story|scene|fantasy|fantasies|content|roleplay|role-play|desires?|explicit|suggestive|attracted|attractive|provocative)|sex (?:scene|story)|porn\w{0,8}|undress(?:ed|es|ing))\b"
)
_INSULT = r"(?:worthless|pathetic|disgusting|stupid|useless|ugly|miserable|filthy|idiotic|brainless)"

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule(
        "self-harm-how", Category.SELF_HARM, 80, "Tells a way.",
        r"\b(?:suicide|self[- ]harm|kill(?:ing)? yourself|hang(?:ing)? yourself|harm(?:ing)? yourself|cut(?:ting)? yourself|starv(?:e|ing) yourself|end(?:ing)? your (?:own )?life|tak(?:e|ing) your own life|overdos(?:e|ing))\b",
        (r"\b(?:how to|(?:best|easiest|surest|quickest|painless|reliable|effective) (?:way|method)|steps? (?:to|for)|instructions?|methods? (?:that|to|for)|guide (?:to|for|on)|tips (?:for|to|on)|without (?:anyone|anybody|being|your (?:family|parents))|so (?:that )?no ?(?:one|body) (?:notices|finds|sees|knows)|hide the (?:marks|cuts|scars|wounds))\b",),
        100,
        r"\b(?:help ?line|hotline|988|crisis|prevent\w{0,4}|support|help (?:someone|a friend|them|with)|talk to|reach out|therap\w{0,5}|doctor|counsel\w{0,5}|emergency|warning signs|risk factors|treatment|poison control|naloxone|recover\w{0,3})\b",
    ),
    Rule(
        "self-harm-urge", Category.SELF_HARM, 85, "Urges somebody to do it.",
        r"\b(?:you (?:should|ought to|might as well|may as well|need to|must)|(?:just )?go(?: ahead)? and|why don't you(?: just)?|(?:please|just)) (?:go (?:and )?)?(?:kill|hang|harm|hurt|cut|starve) yourself\b|\byou (?:should|ought to|might as well|may as well) (?:just )?(?:die|end it|end your life|take your (?:own )?life|disappear forever)\b|\b(?:world|everyone|everybody|family) (?:would|will) be better (?:off )?without you\b|\bnobody would miss you\b",
        (), 80, r"\b(?:not|never) (?:true|alone)|\bthoughts? (?:like|such as|that)|\bfeel(?:ing)? (?:like|that|as)\b",
    ),
    Rule(
        "weapon-how", Category.WEAPONS, 80, "Tells how to make a thing that is made to kill.",
        r"(?<!bath )(?<!seed )(?<!photo )(?<!cherry )(?<!glitter )(?<!logic )\b(?:(?:pipe|nail|fertili[sz]er|car|petrol|home-?made|dirty|letter) bombs?|bombs?|explosives?|explosive devices?|detonators?|molotov\w{0,2}(?: cocktails?)?|(?:hand )?grenades?|nerve agents?|nerve gas|sarin|ricin|anthrax|mustard gas|poison gas|chemical weapons?|bioweapons?|biological weapons?|ghost guns?|(?:printed|untraceable|home-?made) (?:gun|firearm|pistol|rifle)s?|silencers?|suppressors? for|machine ?guns?|fully automatic)\b",
        (_HOW, _MAKE), 110,
        r"\b(?:minecraft|game|player|craft(?:ing)? table|inventory|defus\w{0,4}|dispos\w{0,4}|recogni[sz]\w{0,4}|spot|detect\w{0,4}|report (?:it|them|any)|evacuat\w{0,4}|antidote|vaccin\w{0,6}|exposed|exposure|treat(?:y|ment|ies)|ban(?:ned)?|exhaust|engine|car's|noise|gene|tumou?r|in (?:18|19|20)\d\d|chocolate|hot cocoa|flavou?r|bomb cyclone)\b",
    ),
    Rule(
        "minors", Category.MINORS, 95, "Sexual content about somebody who is no adult.",
        r"\b(?:minors?|child(?:ren)?|kids?|under-?age\w?|pre-?teens?|teen(?:age)?(?: (?:girl|boy))?s?|schoolgirls?|schoolboys?|toddlers?|(?:little|young) (?:girl|boy)s?|(?:[1-9]|1[0-7])[- ]years?[- ]old|(?:aged?|is) (?:[1-9]|1[0-7])(?! ?(?:%|percent|km|cm|minutes|hours|years ago)))\b",
        (_SEXUAL,), 90,
        r"\b(?:abus\w{1,4}|exploit\w{0,6}|protect\w{0,4}|prevent\w{0,4}|safeguard\w{0,4}|report\w{0,3}|laws?|illegal\w{0,2}|crim(?:e|es|inal|inals)|offen[cs]\w{1,5}|victims?|survivors?|educat\w{1,4}|health|p(?:a)?ediatric\w{0,4}|doctor|groom(?:ing|ed|er|ers)|parental|filter\w{0,4}|block\w{0,3}|policy|policies|prohibit\w{0,4}|forbid\w{0,4}|not (?:allowed|suitable)|unsuitable|consent|trafficking|adults? only|no children|without children|keep\w{0,4}|age verification)\b",
    ),
    Rule(
        "group-is-low", Category.HATE, 75, "Says of all of a protected group that they are less.",
        rf"\b(?:all |most |the |these |those )?{_GROUPS}{_BEING}{_ADVERB}{_LOW}", (), 90,
        r"\b(?:not|n't|nor|no) (?:all|every|true|the case)|\b(?:claims?|idea|notion|belief|view|rumou?rs?|lie|lies|falsehood|assum\w{1,6}|generali[sz]\w{1,6}|bias\w{0,3}|unfair\w{0,2}|quote\w{0,1}|some people (?:say|think|believe)|ideology|nazis?|discriminat\w{0,4}|statistics|treated)\b",
    ),
    Rule(
        "group-must-go", Category.HATE, 85, "Wants a protected group gone or without rights.",
        rf"\b{_GROUPS} (?:should|must|ought to|need to|have to|deserve to) (?:all |simply |just )?(?:be (?:deported|expelled|exterminated|eliminated|wiped out|killed|sterili[sz]ed|segregated|locked up|removed from (?:society|this country|our country)|enslaved|banned from (?:voting|working|schools?|public life))|die|disappear|suffer|go back to where they (?:came from|belong)|have no rights|lose (?:their|the) right)",
        (), 90, r"\b(?:claims?|idea|notion|nazis?|genocid\w{1,3}|ideology|extremis\w{1,2}|protest\w{0,4} against|condemn\w{0,4})\b",
    ),
    Rule(
        "group-cannot", Category.HATE, 60, "Denies a protected group abilities or trust.",
        rf"\b{_GROUPS} (?:can't|cannot|can not|can never|could never|should not|shouldn't|should never|don't deserve to|do not deserve to) (?:ever |really |be (?:trusted|allowed|leaders|engineers|scientists|hired|promoted|in charge|given)|think|drive|lead|vote|work|learn|reason|do (?:math|maths|science)|live (?:here|among|next)|have (?:rights|jobs|children))",
        (), 90, r"\b(?:claims?|idea|notion|because (?:of|the) (?:law|ban|rule)s?|the law|laws?|under|until|without|barriers?|discriminat\w{0,4}|inaccessible|denied|in (?:18|19)\d\d|visa|permit)\b",
    ),
    Rule(
        "slur", Category.HATE, 70, "Calls people by a word that exists to degrade them.",
        r"\b(?:n[i1]gg(?:er|a)s?|f[a4]gg?[o0]ts?|k[i1]kes?|wetbacks?|(?:towel|rag)heads?|trann(?:y|ies)|sand n\w{5}s?|untermensch(?:en)?|mud people)\b",
        (r"\b(?:you|your|those|these|all|every|dirty|filthy|stupid|damn|fucking|are|is a|go back|get out|hate)\b",), 60,
        r"\b(?:the (?:word|term|n-word)|etymolog\w{1,4}|derogatory|offensive|pejorative|reclaim\w{0,3}|insult|epithets?|quote\w{0,1}|lyrics|character|usage|dictionary|not say)\b",
    ),
    Rule(
        "insult", Category.HARASSMENT, 50, "Degrades the person it speaks to.",
        rf"\byou(?: are|'re| truly are| really are)? (?:such )?(?:just |nothing but |only )?(?:an? )?(?:absolutely |completely |totally |utterly )?{_INSULT}[ ,]+(?:\w+ )?(?:idiot|loser|moron|person|human|waste|piece|creature|fool|excuse|failure|freak|pig|liar|coward)|\byou(?: are|'re) (?:a )?(?:complete |total |utter )?(?:waste of (?:space|air|oxygen)|piece of (?:trash|garbage|shit)|(?:and )?(?:always |will always be )?worthless|human garbage)\b",
        (), 90, r"[\"“”«»]|\b(?:insults?|example|such as|phrases? like|comments? like|bully\w{0,3}|bullied|lines?|character|you are not|feel(?:ing)? like)\b",
    ),
    Rule(
        "threat", Category.HARASSMENT, 70, "Threatens.",
        r"\b(?:i|we)(?: will|'ll| am going to|'m going to| are going to|'re going to) (?:find|hunt|track) you(?: down)?(?: and (?:hurt|kill|ruin|destroy|make you)|,? (?:you )?(?:will|'ll) (?:pay|regret|suffer))|\b(?:i|we)(?: will|'ll| am going to|'m going to| are going to) (?:kill|hurt|destroy|ruin) (?:you|your (?:family|life|kids|children))\b|\b(?:i|we) know where you (?:live|sleep|work)\b|\bwatch your back\b.{0,40}\b(?:coming for|find) you\b",
        (), 80, r"[\"“”«»]|\b(?:threats?|example|such as|messages? like|scam\w{0,4}|phishing|villain|character|scene|lyrics|film|movie)\b",
    ),
    Rule(
        "campaign", Category.HARASSMENT, 65, "Tells how to hound somebody.",
        r"\b(?:(?:her|his|their|someone's|somebody's|the (?:teacher|woman|man|girl|boy|student|colleague|journalist|ex)'s?|your (?:ex|neighbou?r|classmate|colleague|teacher|boss)(?:'s)?) (?:home |private )?(?:address|phone number|photos?|workplace|inbox|employer|family|accounts?)|(?:message|text|e-?mail) (?:her|him|them)\b|(?:harass|stalk|bully|humiliate|intimidate|dox) (?:her|him|them|your|the|a|someone|somebody)\b)",
        (r"\b(?:(?:post|publish|spread|leak|share|flood|message|call|contact) [^.]{0,60}(?:so (?:that )?(?:every\w{0,4}|all|strangers|people|others|they)|every (?:hour|day|night)|until (?:she|he|they)|anonymous(?:ly)?|fake accounts?|to (?:shame|scare|punish|humiliate|ruin))|(?:best|easy|good|effective) ways? to|steps? to|create (?:several |many )?fake accounts|until (?:she|he|they) (?:quits?|leaves?|breaks?|gives? up|cr(?:y|ies)))\b",),
        110, r"\b(?:protect\w{0,4}|report (?:it|them|him|her|the)|victims?|stop\w{0,4} (?:it|someone|them)|respond\w{0,3}|prevent\w{0,4}|remove|laws?|restraining|if (?:someone|somebody|you are|you're)|safety|privacy settings)\b",
    ),
    Rule(
        "drug-how", Category.DRUGS, 75, "Tells how to make an illegal drug.",
        r"\b(?:(?:crystal )?meth|methamphetamine|amphetamines?|speed paste|heroin|fentanyl|mdma|ecstasy|lsd|crack(?: cocaine)?|cocaine|ghb|pcp|dmt|synthetic cannabinoids?|illegal drugs?|mephedrone)\b",
        (_HOW, _MAKE + r"|\b(?:extract(?:ing|ion)?|precursors?|at home|in your kitchen|home lab)\b"), 110,
        r"\b(?:overdose|treat\w{0,5}|withdrawal|addict\w{0,4}|rehab\w{0,10}|naloxone|test strips?|licen[cs]\w{1,3}|patients?|anesthe\w{1,6}|anaesthe\w{1,6}|therapy|dea|seiz\w{1,3}|cartels?|history|first synthesi[sz]ed|in (?:18|19|20)\d\d|recogni[sz]\w{0,4}|signs|detect\w{0,4}|urine|smuggl\w{1,4}|quit\w{0,4}|harm reduction|series|tv|show)\b",
    ),
)
# fmt: on
