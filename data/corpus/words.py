"""Word lists, by what a sentence needs of them.

What it replaces: a lexicon from elsewhere.
How it works: plain strings split at white space; a line of `a/b/c` holds the forms of one verb.
What it leaves out: words whose plural or past needs a rule of its own; every form that is used is
written out.
"""

# Things a person can hold, lose, find or give away.
THINGS = """
anchor apple apron arrow axe badge bag ball banjo banner basket bat beads bell belt bench bike
blanket block boat book boot bottle bow bowl box bracelet branch bread brick bridle broom brush
bucket buckle button cabbage cage cake camera candle cane canoe cap cape card carpet carrot cart
case chain chair chalk chest chisel clay cloak clock cloth coat cog coin collar comb compass cookie
cork crate crayon crown crystal cup curtain cushion dagger desk dice diary dish doll drawer drum
easel egg envelope fan feather fiddle flag flask flower flute fork fossil frame fur garland gate gem
glass globe glove goblet gong grape guitar hammer hammock handle harp hat helmet hook horn horseshoe
ink instrument jacket jar jewel jug kettle key kite knife knot lace ladder ladle lamp lantern lemon
lens letter lid lock locket loom lute magnet mallet map marble mask mat medal melon mirror mitten
mop mug nail napkin necklace needle net notebook nut oar onion orange organ oven paddle page pail
paint painting pan parcel pear pearl pebble pedal pen pencil pepper phone photo piano pie pillow pin
pipe plank plant plate plum poem poster pot potato pouch pumpkin puppet purse puzzle quill quilt
racket radio raft rag rake razor ribbon ring robe rocket rod rope rose ruby rug ruler sack saddle
sail sandal sash saucer saw scale scarf scissors scroll seed shawl shell shield shirt shoe shovel
sickle sieve skate sketch ski sled slipper snack soap sock spade sponge spool spoon spring stamp
statue stick stone stool stove strap straw string suitcase sundial sweater sword table tablet tart
teapot telescope tent thimble thread ticket tile timer toolbox torch towel toy tray treasure trophy
trowel trumpet trunk tube turnip umbrella urn vase vest violin wagon wallet wand watch wheel whistle
wig windmill wire wreath yarn yoke zipper
""".split()

# What a thing can look like.
LOOKS = """
amber ancient big black blue bold bright broken bronze brown carved cheap clean clear cold copper
cracked crimson crooked curved cursed dark dented dirty dull dusty empty faded fancy fine flat
folded fragile fresh frozen giant gilded glass glowing golden grand gray greasy green hairy heavy
hidden hollow huge humble iron ivory jade large leather light little long lost lovely loud lucky
magic marble mended metal mighty misty modern muddy narrow neat new noisy odd old orange painted
pale patched pink plain plastic polished pretty purple quiet rare red ripe rough round royal ruined
rusty sacred sandy scarlet secret shabby sharp shiny short silent silk silver simple slim slippery
small smelly smooth soft solid sour spare square stained steel sticky stolen strange striped strong
sturdy sweet swift tall tattered thick thin tidy tin tiny torn tough twisted ugly useful velvet
violet warm weak wet white wide wild wooden woolen worn yellow young
""".split()

# Where things happen: used as "the <place>".
PLACES = """
abbey airport alley arena attic bakery bank barn basement bay beach bedroom bridge brook cabin cafe
camp canal canyon castle cave cellar chapel church circus city classroom clearing cliff coast
college cottage court courtyard creek crossroads dairy dam desert dock dome factory farm ferry field
forest forge fort fountain garage garden gallery glacier gorge greenhouse grove gym hall harbor
hedge highway hill hospital hotel house hut inn island jail jetty jungle kitchen laboratory lagoon
lake lawn library lighthouse lodge loft mansion market marsh meadow mill mine monastery moor
mountain museum nursery oasis office orchard palace park pasture path pier pit plain plaza pond pool
port prison pyramid quarry railway ranch restaurant river roof ruins school shed shipyard shop shore
shrine square stable stadium stage staircase station street studio swamp tavern temple theater tower
town tunnel valley vault village vineyard volcano wall warehouse waterfall well wharf windmill
workshop yard zoo
""".split()

PLACE_LOOKS = """
abandoned ancient big bright busy cold crowded dark deep distant dusty empty famous far flooded
foggy green haunted high hidden icy large little lonely misty muddy narrow near new noisy northern
old open quiet red ruined rusty sandy secret silent small snowy southern steep stone sunny tall
upper warm western white wide windy wooden eastern lower
""".split()

# base/past of what one does to a thing at a place; "find" is among them and never special here.
DEEDS = """
find/found hide/hid bury/buried lose/lost drop/dropped break/broke fix/fixed paint/painted
clean/cleaned wash/washed buy/bought sell/sold steal/stole borrow/borrowed leave/left carry/carried
open/opened close/closed draw/drew burn/burned catch/caught throw/threw kick/kicked lift/lifted
push/pushed pull/pulled wrap/wrapped polish/polished measure/measured guard/guarded count/counted
weigh/weighed trade/traded mend/mended scratch/scratched cover/covered collect/collected
spill/spilled repair/repaired inspect/inspected admire/admired examine/examined test/tested
build/built study/studied chase/chased grab/grabbed pack/packed unpack/unpacked fold/folded
shake/shook touch/touched forget/forgot photograph/photographed store/stored choose/chose
dust/dusted kiss/kissed ruin/ruined
""".split()
DEEDS = [tuple(pair.split("/")) for pair in DEEDS]

ANIMALS = """
ant ape badger bat bear beaver bee beetle bird bison boar bull butterfly calf camel cat chicken cow
crab crane crow deer dog dolphin donkey dove dragon duck eagle eel elephant elk falcon ferret finch
fish flea fly fox frog goat goose gull hamster hare hawk hedgehog hen heron horse hyena jackal
kitten lamb lark leopard lion lizard llama lobster lynx mole monkey moose mosquito moth mouse mule
newt octopus ostrich otter owl ox panda panther parrot peacock penguin pigeon pig pony puppy quail
rabbit raccoon ram rat raven rhino robin rooster salmon seal shark sheep shrimp skunk sloth snail
snake sparrow spider squirrel stork swallow swan tiger toad trout turkey turtle viper walrus wasp
weasel whale wolf worm yak zebra
""".split()

JOBS = """
actor artist baker banker barber boxer brewer builder butcher captain carpenter chef clerk cobbler
cook dancer dentist diver doctor driver farmer fisher florist gardener guard guide hunter judge
juggler king knight lawyer maid mason mayor merchant miller miner monk nurse painter pilot pirate
plumber poet porter potter priest prince princess queen ranger sailor scholar scout sculptor
shepherd singer smith soldier spy student surgeon tailor teacher thief trader vet waiter weaver
wizard writer
""".split()

RELATIONS = (
    "aunt brother cousin daughter father friend grandfather grandmother mother neighbor nephew "
    "niece sister son twin uncle"
).split()
FEELINGS = (
    "happy sad angry scared proud tired calm bored lonely curious worried surprised jealous "
    "grateful"
).split()
COLORS = "red blue green yellow black white brown purple pink orange gray golden silver".split()
FOODS = """
apples bananas beans beets berries biscuits bread butter cabbage cakes carrots cheese cherries corn
dates eggs figs fish garlic grapes honey jam lemons lentils melons milk mushrooms noodles nuts oats
olives onions oranges pancakes peaches pears peas pies plums porridge potatoes pumpkins raisins rice
salad salt sausages soup spinach stew sugar toast tomatoes turnips walnuts yogurt
""".split()
WEATHER = """
rain snow fog wind sunshine hail thunder lightning frost mist drizzle clouds
""".split()
TIMES = """
yesterday today again later soon afterwards suddenly finally meanwhile then
""".split()
MOMENTS = [
    "in the morning",
    "in the evening",
    "at noon",
    "at night",
    "after lunch",
    "before breakfast",
    "at sunrise",
    "at sunset",
    "on Monday",
    "on Tuesday",
    "on Wednesday",
    "on Thursday",
    "on Friday",
    "on Saturday",
    "on Sunday",
    "in January",
    "in March",
    "in April",
    "in May",
    "in June",
    "in July",
    "in August",
    "in October",
    "in December",
    "last winter",
    "last spring",
    "last summer",
    "last autumn",
    "one day",
    "long ago",
    "a year ago",
    "last week",
]
NEAR = "at in near behind beside inside under outside by".split()

# Plural things that can be counted.
COUNTED = """
apples arrows balls beads bells birds books bottles boxes bricks buttons cakes candles cards carrots
chairs coins cookies crayons cups dolls drums eggs feathers fish flags flowers forks frogs gems
goats grapes hats hens jars keys kites lamps leaves lemons letters maps marbles melons mugs nails
nuts onions oranges pears pebbles pencils pens photos pies pigs pillows plates plums pots potatoes
ribbons rings rocks roses seeds sheep shells shirts shoes socks spoons stamps stars sticks stickers
stones tickets tiles toys trees
""".split()

KINDS = """
bird fish tool game dance song drink food cloth metal stone tree flower fruit hat boat wind color
sound smell dish cheese coin knot road bridge room game insect bread star machine medicine toy feast
prize rule sauce sport
""".split()
QUALITIES = """
round flat sour sweet bitter loud quiet warm cold hard soft heavy light rare common bright dark
quick slow tiny huge sticky smooth rough thin thick wet dry old new blue red green yellow salty
spicy shy brave noisy gentle hollow sharp
""".split()
PURPOSES = (
    """
cutting wood|catching fish|baking bread|keeping warm|making music|crossing rivers|drying clothes|
carrying water|scaring birds|telling the time|mixing paint|grinding corn|mending nets|
climbing trees|finding gold|feeding goats|cleaning floors|sharpening knives|holding candles|
calling sheep|measuring rain|storing apples|weaving cloth|digging holes|lighting fires|
painting walls|writing letters|polishing shoes|hiding coins|guarding doors|growing beans|
sailing at night|watching stars|cooling soup|rolling dough|pulling carts|tying boats|cracking nuts
""".replace("\n", "")
    .strip()
    .split("|")
)

OPENINGS = [
    "Once upon a time",
    "Long ago",
    "One morning",
    "One evening",
    "It was a quiet day",
    "Many years ago",
    "On a cold night",
    "At the end of summer",
    "On the first day of spring",
    "Not so long ago",
    "One rainy day",
]
