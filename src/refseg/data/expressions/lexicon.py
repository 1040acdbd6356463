"""What people call the categories of COCO panoptic and of street fashion: the word lists."""

from __future__ import annotations

# One line per label: the names people say, plainest first. "~" marks a word that is always plural (jeans), and "="
# a word without a plural (grass). "&" marks a word for a pair: "shoe" if each is a segment, "shoes" if one segment
# contains both. A label without names is only meant by words such as "thing".
NAMES = """
accessories:
bag: bag, bag, tote, handbag
belt: belt
blazer: blazer, jacket, suit jacket
blouse: blouse, shirt, top
bodysuit: bodysuit, body suit, leotard
boots: &boot
bra: bra
bracelet: bracelet, bangle, wristband
cape: cape, cloak, poncho
cardigan: cardigan, sweater, knit jacket
clogs: &clog, &shoe
coat: coat, overcoat, long coat
dress: dress, gown
earrings: &earring
flats: &flat shoe, &shoe, &ballet flat
glasses: ~glasses, ~eyeglasses, ~spectacles, ~specs
gloves: &glove
hair: =hair, =hair, =hair, hairstyle, hairdo
hat: hat, cap, headwear
heels: &heel, &shoe, &high heel
hoodie: hoodie, hooded sweater, sweatshirt
intimate:
jacket: jacket, coat
jeans: ~jeans, =denim, ~denim pants, ~pants, ~blue jeans
jumper: jumper, sweater, pullover
leggings: ~leggings, ~leggings, ~tight pants
loafers: &loafer, &shoe
necklace: necklace, chain
panties:
pants: ~pants, ~pants, ~trousers, ~slacks
pumps: &pump, &shoe, &high heel
purse: purse, bag, handbag, clutch
ring: ring
romper: romper, playsuit, one piece
sandals: &sandal, &sandal, &open shoe
scarf: scarf, shawl, neck scarf
shirt: shirt, button up, dress shirt
shoes: &shoe, &shoe, &shoe, &shoe, &foot
shorts: ~shorts, ~short pants
skin: =skin, =bare skin
skirt: skirt
sneakers: &sneaker, &shoe, &trainer, &running shoe
socks: &sock
stockings: ~stockings, =hosiery, ~nylons
suit: suit, formal suit
sunglasses: ~sunglasses, ~shades, ~sun glasses, ~dark glasses
sweater: sweater, pullover, knit, jumper
sweatshirt: sweatshirt, sweater, sweat shirt
swimwear:
t-shirt: t-shirt, tee, shirt, tshirt, tee shirt
tie: tie, necktie
tights: ~tights, ~stockings
top: top, shirt, upper garment
vest: vest, waistcoat, sleeveless jacket
wallet: wallet, clutch, small purse
watch: watch, wrist watch, wristwatch
wedges: &wedge, &shoe

person: person, man, woman, guy, lady, girl, boy, kid, dude, individual, child, human, chick, fella, male, female
bicycle: bike, bicycle, cycle, bike
car: car, automobile, auto
motorcycle: motorcycle, motorbike, bike, motor cycle
airplane: plane, airplane, jet, aircraft, aeroplane
bus: bus, coach
train: train, locomotive
truck: truck, lorry, pickup
boat: boat, ship, vessel
traffic light: traffic light, stoplight, traffic signal, stop light
fire hydrant: fire hydrant, hydrant
stop sign: stop sign, sign
parking meter: parking meter, meter
bench: bench, seat
bird: bird, birdie
cat: cat, kitty, kitten
dog: dog, puppy, pup, doggy
horse: horse, pony
sheep: =sheep, lamb
cow: cow, bull, calf
elephant: elephant
bear: bear
zebra: zebra
giraffe: giraffe
backpack: backpack, bag, rucksack, back pack
umbrella: umbrella, parasol
handbag: handbag, bag, purse, hand bag
suitcase: suitcase, luggage, bag, case
frisbee: frisbee, disc, disk
skis: ~skis
snowboard: snowboard, board
sports ball: ball
kite: kite
baseball bat: bat, baseball bat
baseball glove: glove, mitt, baseball glove
skateboard: skateboard, board, skate board
surfboard: surfboard, board, surf board
tennis racket: racket, tennis racket, racquet
bottle: bottle
wine glass: glass, wine glass, goblet
cup: cup, mug, glass
fork: fork
knife: knife, blade
spoon: spoon
bowl: bowl, dish
banana: banana
apple: apple
sandwich: sandwich, burger, sub
orange: orange, citrus
broccoli: =broccoli, broccoli floret
carrot: carrot
hot dog: hot dog, hotdog, sausage
pizza: pizza, pie
donut: donut, doughnut, pastry
cake: cake, dessert
chair: chair, seat
couch: couch, sofa, loveseat, settee
potted plant: plant, potted plant, house plant
bed: bed, mattress
dining table: table, dining table
toilet: toilet, commode, toilet bowl
tv: tv, television, screen, monitor, telly
laptop: laptop, computer, notebook computer
mouse: mouse, computer mouse
remote: remote, remote control, controller, clicker
keyboard: keyboard
cell phone: phone, cell phone, mobile, smartphone, cellphone
microwave: microwave, microwave oven
oven: oven, stove, range
toaster: toaster
sink: sink, basin
refrigerator: fridge, refrigerator, freezer
book: book, novel
clock: clock, timepiece
vase: vase, flower vase
scissors: ~scissors, ~shears
teddy bear: teddy bear, teddy, stuffed animal, stuffed bear, plush
hair drier: hair dryer, blow dryer
toothbrush: toothbrush, tooth brush

banner: banner
blanket: blanket, throw
bridge: bridge, overpass
cardboard: =cardboard, cardboard box
counter: counter, countertop
curtain: curtain, drape
door-stuff: door, doorway
floor-wood: wood floor, floor, wooden floor, hardwood floor
flower: ~flowers, =flower, ~blossoms
fruit: =fruit
gravel: =gravel, ~pebbles, ~small stones
house: house, home
light: light, lamp
mirror-stuff: mirror
net: net, netting
pillow: pillow, cushion
platform: platform
playingfield: field, playing field, pitch, court, sports field
railroad: ~tracks, railroad, ~train tracks, railway
river: river, stream, =water
road: road, street, roadway
roof: roof, rooftop
sand: =sand, beach
sea: ocean, sea, =water, =sea water
shelf: shelf, rack
snow: =snow, =snowy ground
stairs: ~stairs, ~steps, staircase
tent: tent, canopy
towel: towel
wall-brick: brick wall, =brick, ~bricks, wall
wall-stone: stone wall, wall
wall-tile: tile wall, =tile, wall, ~tiles
wall-wood: wood wall, wall, wooden wall
water-other: =water, body of water
window-blind: =blinds, window blind, =window shade
window-other: window, window pane
tree-merged: ~trees, =tree, =foliage, ~bushes, =greenery
fence-merged: fence, fencing, railing
ceiling-merged: ceiling
sky-other-merged: =sky
cabinet-merged: cabinet, cupboard
table-merged: table, table top, tabletop
floor-other-merged: floor, =flooring, ground
pavement-merged: pavement, sidewalk, ground, footpath
mountain-merged: mountain, hill, ~mountains, ~hills
grass-merged: grass, lawn, grassy area, =green grass, field
dirt-merged: dirt, ground, =soil, bare earth
paper-merged: =paper, papers
food-other-merged: food, =food
building-other-merged: building, ~buildings, =architecture
rock-merged: rock, ~rocks, ~stones
wall-other-merged: wall
rug-merged: rug, carpet, mat
"""

# Labels of one line can be confused: while another of them is there, none of their names is unambiguous.
CONFUSABLE = """
bag, purse, wallet, handbag, backpack, suitcase
shoes, boots, heels, sneakers, loafers, pumps, sandals, flats, wedges, clogs
socks, stockings, tights, leggings
coat, jacket, blazer, cardigan, cape, vest, suit
sweater, cardigan, jumper, sweatshirt, hoodie, top, jacket
shirt, blouse, t-shirt, top, sweater, sweatshirt, jumper, hoodie, bodysuit, vest, swimwear
pants, jeans, leggings, tights, stockings, shorts, suit
dress, romper, jumper, bodysuit, skirt, coat, cape
skirt, shorts
bra, intimate, panties, swimwear, bodysuit, top
glasses, sunglasses
bracelet, watch, ring, accessories
necklace, scarf, tie, accessories
earrings, accessories
belt, accessories
hat, accessories
gloves, baseball glove, accessories
car, truck, bus
train, bus
bicycle, motorcycle
cow, horse, sheep
dog, cat, bear, teddy bear
cup, wine glass, vase, bottle, bowl
fork, knife, spoon
chair, couch, bench, toilet
bed, couch
dining table, table-merged, counter, shelf, cabinet-merged
potted plant, vase, flower, tree-merged, grass-merged
tv, laptop, cell phone
keyboard, laptop, mouse, remote, cell phone
oven, microwave, toaster, refrigerator, cabinet-merged
sandwich, hot dog, pizza, cake, donut, food-other-merged, broccoli, carrot, banana, apple, orange, fruit
snowboard, skis, skateboard, surfboard
baseball bat, tennis racket
kite, airplane, bird
stop sign, banner, traffic light
clock, light, traffic light
book, paper-merged, cardboard
blanket, towel, curtain, pillow, rug-merged, bed, banner
building-other-merged, house, roof, tent, bridge
window-blind, curtain, window-other, mirror-stuff, door-stuff
wall-brick, wall-stone, wall-tile, wall-wood, wall-other-merged
floor-wood, floor-other-merged, rug-merged
road, pavement-merged, platform, railroad, gravel, dirt-merged, sand, floor-other-merged, playingfield
grass-merged, playingfield, dirt-merged
snow, sand
river, sea, water-other
mountain-merged, rock-merged
fence-merged, net
"""

_FOOTWEAR = "shoes, boots, heels, sneakers, loafers, pumps, sandals, flats, wedges, clogs"
_GARMENTS = (
    "blazer, blouse, bodysuit, bra, cape, cardigan, coat, dress, hoodie, intimate, jacket, jeans, jumper, leggings, "
    "panties, pants, romper, shirt, shorts, skirt, stockings, suit, sweater, sweatshirt, swimwear, t-shirt, tights, "
    "top, vest, hat, scarf, gloves, socks, tie, belt, " + _FOOTWEAR
)
_ANIMALS = "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, teddy bear"

HYPERNYMS = {
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "animal": _ANIMALS,
    "creature": _ANIMALS,
    "=footwear": _FOOTWEAR,
    "=eyewear": "glasses, sunglasses",
    "=silverware": "fork, knife, spoon",
    "utensil": "fork, knife, spoon",
    "piece of furniture": "chair, couch, bench, bed, dining table, table-merged, cabinet-merged, shelf, toilet",
    "appliance": "oven, microwave, toaster, refrigerator, sink, hair drier",
    "piece of jewelry": "bracelet, watch, ring, necklace, earrings, accessories",
    "vegetable": "broccoli, carrot, food-other-merged",
    "container": "cup, bowl, bottle, vase, wine glass, suitcase, sink",
    "piece of clothing": _GARMENTS,
    "garment": _GARMENTS,
}
"""Broader names and the labels they cover; marks as in `NAMES`."""

ANYTHING = ("thing", "object", "item", "one", "")
"""Words for anything. "" is no noun at all ("bottom left")."""


def _set(labels: str) -> frozenset[str]:
    return frozenset(labels.split(", "))


WORN = _set(
    "bag, bracelet, earrings, glasses, hair, necklace, purse, ring, skin, sunglasses, wallet, watch, " + _GARMENTS
) - {"tie"}
"""Labels of what a person wears or carries, so that "her" or "his" may come before their names."""

CARRIED = _set(
    "tie, handbag, backpack, umbrella, suitcase, cell phone, tennis racket, baseball bat, baseball glove, "
    "skateboard, surfboard, snowboard, skis, kite, frisbee"
)
"""Labels of things by which a person can be identified."""

_STANDING = _set(
    "person, car, bus, truck, motorcycle, bicycle, dog, horse, sheep, cow, elephant, zebra, giraffe, chair"
)
UPRIGHT = _STANDING | _set(_FOOTWEAR)
"""Labels of things on the ground: a lower bottom edge means nearer to the camera."""

TALL = _STANDING | _set(
    "bottle, wine glass, cup, vase, potted plant, traffic light, fire hydrant, refrigerator, teddy bear, light, "
    "building-other-merged, house, bird, cat, bear, parking meter, umbrella"
)
"""Labels that people call tall or short by their height."""

LONG = _set("dress, skirt, coat, jacket, cape, cardigan, blazer, pants, jeans, shorts, romper, scarf, vest")
"""Labels that people call long by their height as worn."""

SUPPORTS = _set(
    "table-merged, dining table, bed, couch, chair, bench, counter, shelf, horse, elephant, motorcycle, bicycle, "
    "skateboard, surfboard, snowboard, skis, grass-merged, road, pavement-merged, sand, snow, playingfield, "
    "dirt-merged, gravel, platform, floor-wood, floor-other-merged, rug-merged, rock-merged, boat, laptop, "
    "cabinet-merged, paper-merged, railroad"
)
"""Labels of things that other things rest on."""

SURROUNDINGS = _set(
    "sky-other-merged, water-other, sea, river, grass-merged, snow, tree-merged, bowl, wine glass, cup, vase, sink"
)
"""Labels of things that other things are in."""

IRREGULAR_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "knife": "knives",
    "shelf": "shelves",
    "foot": "feet", "scarf": "scarves", "mouse": "mice", "loaf": "loaves", "lady": "ladies", "calf": "calves",
    "kitty": "kitties", "puppy": "puppies", "doggy": "doggies", "body": "bodies", "pony": "ponies",
    "piece": "pieces", "dish": "dishes", "chassis": "chassis",
}  # fmt: skip
