"""Turns probabilities of ImageNet's 1,000 classes into something that a description may say.

A raw class misleads: a portrait is a "wig", a kite a "parachute". So probabilities are summed over
everyday categories. This allow-list leaves out clothing, weapons, screens and other classes that
the network also finds in pictures of other things. A category that is not certain is not named.
Most pictures, above all of people and scenes, are in no category: then nothing is said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Least probability at which a category is named. Between 0.3 and 0.5, half of them were wrong, and
#: between 0.5 and 0.6 a sixth.
TOLD = 0.6
#: The same for "an animal": a third of all classes are animals, and leaves, grass and a blur alone
#: sum up to as much as 0.83.
ANIMAL_TOLD = 0.9
#: Least probability at which the kind of an animal is named.
KIND_TOLD = 0.6


def _classes(text: str) -> tuple[int, ...]:
    """Read ``"7-24 80"``."""
    ranges = (part.partition("-") for part in text.split())
    return tuple(n for low, _, high in ranges for n in range(int(low), int(high or low) + 1))


_ANIMAL = "an animal"
#: Categories by the numbers of their classes, in the order in which they are tried: a wide category
#: comes after the narrow ones that it contains.
_CATEGORIES = {
    name: _classes(text)
    for name, text in {
        # Animals
        "a dog": "151-268",
        "a cat": "281-285",
        "a bird": "7-24 80-100 127-146",
        "a fish": "0-1 389-397",
        "a shark or ray": "2-6",
        "a wolf or wild dog": "269-275",
        "a fox": "277-280",
        "a wild cat": "286-293",
        "a bear": "294-297",
        "a turtle": "33-37",
        "a lizard": "38-48",
        "a crocodile": "49-50",
        "a snake": "52-68",
        "a frog": "30-32",
        "a salamander": "25-29",
        "a spider": "72-77",
        "a butterfly": "321-326",
        "an insect": "300-320",
        "a crab or lobster": "118-125",
        "a snail or slug": "113-115",
        "a whale": "147-148",
        "a rabbit": "330-332",
        "a squirrel or another rodent": "333 335-338",
        "a horse": "339",
        "a zebra": "340",
        "a pig": "341-343",
        "cattle": "345-347",
        "a sheep or goat": "348-350",
        "an antelope": "351-353",
        "a camel": "354",
        "a llama": "355",
        "a monkey or ape": "365-382",
        "an elephant": "101 385-386",
        "a hippopotamus": "344",
        "a kangaroo or koala": "104-106",
        "a panda": "387-388",
        _ANIMAL: "0-50 52-68 70-77 80-106 113-125 127-328 330-397",
        # Vehicles
        "a car": "436 468 479 511 581 609 627 656 661 751 817",
        "a bus": "654 779 874",
        "a truck": "555 569 675 864 867",
        "a train or tram": "466 547 565 705 820 829",
        "an aeroplane": "404 895 908",
        "a boat or ship": "472 484 510 554 576 625 628 724 780 814 871 914",
        "a bicycle": "444 671",
        "a motorcycle": "665 670",
        "a tractor or harvester": "595 856 866",
        "a hot-air balloon": "417",
        "a vehicle": (
            "407 436 444 468 479 511 555 569 573 575 581 609 627 654 656 661 665 670 671 675 717 "
            "734 751 757 779 802 803 817 864 866 867 870 874"
        ),
        # Buildings and land
        "a church": "442 497",
        "a mosque": "668",
        "a castle or palace": "483 698",
        "a bridge": "821 839 888",
        "a lighthouse": "437",
        "a building": "425 442 449 483 497 538 580 663 668 698 832 853 858 873 915",
        "a fountain": "562",
        "a mountain": "970 980",
        "a shore": "975-978",
        "a coral reef": "973",
        # Plants and food
        "a flower": "985 986",
        "a mushroom": "947 992-997",
        "maize": "987 998",
        "fruit": "948-957",
        "vegetables": "936-945",
        "a pizza": "963",
        "ice cream": "928 929",
        "bread": "930-932",
        "a cup": "504 967 968",
        "food": "923-945 948-957 959 961-965",
        # Things
        "a piano": "579 881",
        "a guitar": "402 546",
        "a violin or cello": "486 889",
        "a musical instrument": "401 402 420 432 486 513 541 546 566 579 594 683 776 875 881 889",
        "a computer": "508 527 620",
        "books": "453 454 624",
        "a bottle": "440 737 898 907",
        "an umbrella": "879",
        "a teddy bear": "850",
        "a traffic light": "920",
        "a carousel": "476",
    }.items()
}

#: Kinds of animals in the order of the classes, from 0 to 397. Empty for unreliable classes: those
#: of striped cats are confused with each other, and dots and smears are mistaken for worms.
_KINDS: tuple[str, ...] = tuple(
    name.strip()
    for line in """
tench|goldfish|great white shark|tiger shark|hammerhead|electric ray|stingray|rooster|hen|ostrich
brambling|goldfinch|house finch|junco|indigo bunting|robin|bulbul|jay|magpie|chickadee
dipper|kite|bald eagle|vulture|great grey owl|fire salamander|newt|eft|spotted salamander|axolotl
bullfrog|tree frog|tailed frog|loggerhead turtle|leatherback turtle|mud turtle|terrapin|box turtle
banded gecko|green iguana|anole|whiptail lizard|agama|frilled lizard|alligator lizard|Gila monster
green lizard|chameleon|Komodo dragon|Nile crocodile|alligator||worm snake|ringneck snake
hognose snake|green snake|king snake|garter snake|water snake|vine snake|night snake
boa constrictor|rock python|cobra|green mamba|sea snake|horned viper|diamondback rattlesnake
sidewinder||harvestman|scorpion|garden spider|barn spider|garden spider|black widow|tarantula
wolf spider|tick|centipede|black grouse|ptarmigan|ruffed grouse|prairie chicken|peacock|quail
partridge|grey parrot|macaw|cockatoo|lorikeet|coucal|bee-eater|hornbill|hummingbird|jacamar|toucan
duck|merganser|goose|black swan|elephant|echidna|platypus|wallaby|koala|wombat|||||
conch|snail|slug|sea slug|chiton|nautilus|Dungeness crab|rock crab|fiddler crab|king crab|lobster
spiny lobster|crayfish|hermit crab||white stork|black stork|spoonbill|flamingo|heron|egret|bittern
crane|limpkin|gallinule|coot|bustard|turnstone|sandpiper|redshank|dowitcher|oystercatcher|pelican
penguin|albatross|grey whale|killer whale|dugong|sea lion|Chihuahua|Japanese Chin|Maltese
Pekinese|Shih Tzu|King Charles spaniel|papillon|toy terrier|Rhodesian ridgeback|Afghan hound
basset hound|beagle|bloodhound|bluetick coonhound|black and tan coonhound|Walker hound|foxhound
redbone coonhound|borzoi|Irish wolfhound|Italian greyhound|whippet|Ibizan hound|elkhound|otterhound
Saluki|Scottish deerhound|Weimaraner|Staffordshire bull terrier|American Staffordshire terrier
Bedlington terrier|Border terrier|Kerry blue terrier|Irish terrier|Norfolk terrier|Norwich terrier
Yorkshire terrier|wire fox terrier|Lakeland terrier|Sealyham terrier|Airedale terrier
cairn terrier|Australian terrier|Dandie Dinmont terrier|Boston terrier|miniature schnauzer
giant schnauzer|standard schnauzer|Scottish terrier|Tibetan terrier|silky terrier|wheaten terrier
West Highland white terrier|Lhasa apso|flat-coated retriever|curly-coated retriever
golden retriever|Labrador retriever|Chesapeake Bay retriever|German pointer|vizsla|English setter
Irish setter|Gordon setter|Brittany spaniel|clumber spaniel|springer spaniel|Welsh springer spaniel
cocker spaniel|Sussex spaniel|Irish water spaniel|kuvasz|schipperke|Groenendael|Malinois|briard
kelpie|komondor|Old English sheepdog|Shetland sheepdog|collie|Border collie|bouvier|Rottweiler
German shepherd|Dobermann|miniature pinscher|Greater Swiss mountain dog|Bernese mountain dog
Appenzeller|Entlebucher|boxer|bullmastiff|Tibetan mastiff|French bulldog|Great Dane|Saint Bernard
husky|malamute|Siberian husky|Dalmatian|affenpinscher|basenji|pug|Leonberger|Newfoundland
Great Pyrenees|Samoyed|Pomeranian|chow|keeshond|griffon|Pembroke corgi|Cardigan corgi|toy poodle
miniature poodle|standard poodle|Mexican hairless dog|grey wolf|white wolf|red wolf|coyote|dingo
dhole|African wild dog|hyena|red fox|kit fox|Arctic fox|grey fox|||Persian cat
Siamese cat||cougar|lynx|leopard|snow leopard|jaguar|lion|tiger|cheetah|brown bear
black bear|polar bear|sloth bear|mongoose|meerkat|tiger beetle|ladybird|ground beetle
longhorn beetle|leaf beetle|dung beetle|rhinoceros beetle|weevil|fly|bee|ant|grasshopper|cricket
stick insect|cockroach|mantis|cicada|leafhopper|lacewing|dragonfly|damselfly|admiral butterfly
ringlet butterfly|monarch butterfly|cabbage white|sulphur butterfly|gossamer-winged butterfly
starfish|sea urchin||rabbit|hare|Angora rabbit|hamster|porcupine|fox squirrel|marmot|beaver
guinea pig|chestnut horse|zebra|domestic pig|wild boar|warthog|hippopotamus|ox|water buffalo|bison
ram|bighorn sheep|ibex|hartebeest|impala|gazelle|dromedary|llama|weasel|mink|polecat|ferret|otter
skunk|badger|armadillo|sloth|orangutan|gorilla|chimpanzee|gibbon|siamang|guenon|patas monkey|baboon
macaque|langur|colobus|proboscis monkey|marmoset|capuchin|howler monkey|titi monkey|spider monkey
squirrel monkey|lemur|indri|Indian elephant|African elephant|red panda|giant panda|barracouta|eel
salmon|rock beauty|clownfish|sturgeon|gar|lionfish|pufferfish
""".strip().split("\n")
    for name in line.split("|")
)


@dataclass(frozen=True)
class Content:
    """What a picture shows, in words for a description."""

    category: str
    """With its article: ``a dog``."""
    kind: str = ""
    """Kind of an animal, with its article: ``a collie``; empty if it is not certain enough."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The category and the kind without articles; for "a boat or ship", only the first word."""
        names = (self.category.split(" or ")[0], self.kind)
        return tuple(re.sub(r"^an? ", "", name).lower() for name in names if name)


def content_of(views: Sequence[NDArray[np.float32]]) -> Content | None:
    """Find the content from the probabilities of several views, or of the frames of a video.

    Args:
        views: each of shape ``(1000,)`` with the sum 1; at least one.

    Returns:
        None if nothing is certain enough to be named.
    """
    mean = np.mean(views, axis=0)
    told = (
        name
        for name, classes in _CATEGORIES.items()
        if mean[list(classes)].sum() >= (ANIMAL_TOLD if name == _ANIMAL else TOLD)
    )
    category = next(told, None)
    if category is None:
        return None
    likeliest = max(_CATEGORIES[category], key=mean.__getitem__)
    kind = _KINDS[likeliest] if likeliest < len(_KINDS) and mean[likeliest] >= KIND_TOLD else ""
    if not kind or kind in category:
        return Content(category)
    return Content(category, f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}")
