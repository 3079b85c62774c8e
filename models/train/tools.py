"""Invented tools: schemas, requests with their arguments, results and what an answer says of them."""

from __future__ import annotations

import random
import re

from facts import expand
from words import *

STRING, INTEGER, NUMBER, BOOLEAN, ARRAY = "string", "integer", "number", "boolean", "array"


def path(rng):
    r = rng.random()
    stem = rng.choice((rng.choice(NOUNS), invented(rng), "main", "lib", "README", "notes", "config", "index", "test_" + rng.choice(NOUNS)))
    name = stem + "." + rng.choice(EXTENSIONS)
    if r < 0.3:
        return name
    folders = "/".join(rng.choice(FOLDERS + NOUNS[:20]) for _ in range(rng.randrange(1, 4)))
    return ("/" if r > 0.65 else "") + folders + "/" + name


def command(rng):
    return rng.choice((
        lambda: "ls -la", lambda: "ls " + rng.choice(FOLDERS), lambda: "pwd", lambda: "git status", lambda: "git diff", lambda: "git log --oneline",
        lambda: "cargo test", lambda: "cargo build --release", lambda: "make " + rng.choice(NOUNS), lambda: "python3 " + path(rng), lambda: "cat " + path(rng),
        lambda: f"grep -rn {invented(rng)} {rng.choice(FOLDERS)}", lambda: "wc -l " + path(rng), lambda: f"head -n {rng.randrange(1, 60)} {path(rng)}", lambda: "npm install",
        lambda: "echo " + rng.choice(NOUNS), lambda: "mkdir " + invented(rng), lambda: "find . -name '*." + rng.choice(EXTENSIONS) + "'", lambda: "uname -a", lambda: "date",
        lambda: "rm " + path(rng), lambda: f"cp {path(rng)} {path(rng)}", lambda: "whoami", lambda: "df -h", lambda: f"curl https://{invented(rng)}.com",
    ))()


def phrase(rng):
    return " ".join(rng.choice((rng.choice(NOUNS), rng.choice(ADJECTIVES), any_word(rng))) for _ in range(rng.randrange(1, 5)))


def title(rng):
    r = rng.random()
    if r < 0.4:
        return f"The {rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}"
    return sentence(rng).rstrip(".!?") if r < 0.6 else invented(rng).capitalize() + " " + rng.choice(NOUNS)


KINDS = {
    "city": lambda r: r.choice(CITIES) if r.random() < 0.6 else any_word(r).capitalize() + r.choice(("", "", " " + invented(r, 1).capitalize())),
    "name": lambda r: any_name(r) + r.choice(("", "", " " + any_word(r).capitalize())),
    "email": lambda r: f"{r.choice((r.choice(NAMES).lower(), invented(r)))}@{invented(r)}.{r.choice(('com', 'org', 'net', 'de', 'io'))}",
    "path": path,
    "command": command,
    "phrase": phrase,
    "title": title,
    "word": lambda r: r.choice((r.choice(NOUNS), any_word(r), r.choice(ADJECTIVES) + " " + r.choice(NOUNS))),
    "id": lambda r: r.choice((f"{r.choice('ABCDEFGH')}{r.randrange(100, 10000)}", str(r.randrange(1000, 100000)), f"{invented(r, 1).upper()}-{r.randrange(10, 1000)}")),
    "int": lambda r: r.choice((r.randrange(2, 10), r.randrange(10, 100), r.randrange(100, 2000))),
    "amount": lambda r: r.choice((r.randrange(5, 2000), round(r.uniform(1, 300), 2), round(r.uniform(1, 90), 1))),
    "color": lambda r: r.choice(COLORS),
    "language": lambda r: r.choice(LANGUAGES),
    "currency": lambda r: r.choice(CURRENCIES),
    "day": lambda r: r.choice(DAYS) if r.random() < 0.5 else f"{r.randrange(2024, 2030)}-{r.randrange(1, 13):02}-{r.randrange(1, 29):02}",
    "time": lambda r: r.choice((f"{r.randrange(0, 24)}:{r.randrange(0, 60):02}", f"{r.randrange(1, 12)} {r.choice(('am', 'pm'))}")),
    "symbol": lambda r: "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(r.randrange(3, 5))),
    "url": lambda r: f"https://{r.choice(('', 'www.'))}{invented(r)}.{r.choice(('com', 'org', 'net'))}{r.choice(('', '/' + r.choice(NOUNS), '/' + r.choice(NOUNS) + '/' + str(r.randrange(100))))}",
    "pattern": lambda r: r.choice((invented(r), "*." + r.choice(EXTENSIONS), "**/*." + r.choice(EXTENSIONS), "TODO", f"fn {invented(r)}", f"def {r.choice(NOUNS)}", r.choice(NOUNS))),
}

# verbs of the tool's name | nouns of the name | description | parameters kind:type:names | sentences
DOMAINS = """
get fetch check lookup show | weather forecast current_weather | Get the {weather|weather forecast|current weather} for a {place|city|location}. | city:string:city,location,place,town,where | {what's|what is} the weather {like |}in {0}; how is the weather in {0}; {weather|forecast} {for|in} {0}; tell me the weather in {0}; is it raining in {0}; do i need an umbrella in {0}; how warm is it in {0}
get fetch | forecast weather_for_day | Weather forecast for a city on a day. | city:string:city,location,place; day:string:day,date,when | what will the weather be in {0} on {1}; weather in {0} for {1}; how will it be in {0} {1}; forecast for {0}, {1}
send write post deliver | email mail message | Send {an email|a mail|a message} to somebody. | email:string:to,recipient,address,email; phrase:string:body,text,message,content | send {an email|a mail} to {0} {saying|that says|with the text} {1}; write to {0}: {1}; mail {0} the text {1}; email {0} and say {1}
send post | message chat_message sms text_message | Send a short message to a person. | name:string:to,recipient,person,user,name; phrase:string:message,text,body | tell {0}: {1}; send {0} the message {1}; message {0} saying {1}; text {0} that {1}; let {0} know: {1}
search find lookup query | web internet docs documents pages | Search {the web|the internet|all documents} for {a query|information}. | phrase:string:query,q,search_query,keywords,text | search {the web |}for {0}; look up {0}; find {pages|information} about {0}; google {0}; search: {0}; what can you find about {0}
search find list | flights trains connections | Find {flights|connections} between two cities. | city:string:origin,from_city,departure,start; city:string:destination,to_city,arrival,target | {find|search} {a flight|flights|a connection} from {0} to {1}; i want to travel from {0} to {1}; how do i get from {0} to {1}; {flights|trains} from {0} to {1}; book me a trip from {0} to {1}
get fetch | stock_price share_price quote | Get the price of a stock. | symbol:string:symbol,ticker,stock | {what's|what is} the {stock |}price of {0}; {price|quote} for {0}; how is {0} doing {today|}; check the stock {0}; how much is {0} worth
convert exchange | currency money | Convert an amount of money. | amount:number:amount,value,sum; currency:string:from_currency,source,from; currency:string:to_currency,target,to | convert {0} {1} to {2}; how much is {0} {1} in {2}; change {0} {1} into {2}; what are {0} {1} in {2}
create add set new | reminder alarm | Create a reminder. | phrase:string:text,title,what,message; time:string:time,at,when | remind me at {1} to {0}; set a reminder for {1}: {0}; at {1} remind me about {0}; {create|add} a reminder {0} at {1}
set start create | timer countdown | Start a timer. | int:integer:minutes,duration,length,min | set a timer for {0} minutes; start a {0} minute timer; {wake|call} me in {0} minutes; timer: {0} minutes
create add schedule plan book | event meeting appointment calendar_event | Create a calendar event. | title:string:title,name,subject,event; day:string:date,day,when | {schedule|plan|add|create} {a meeting|an event|an appointment} called {0} {on|for} {1}; put {0} in my calendar for {1}; add {0} on {1}
translate | text phrase_to sentence | Translate text to another language. | phrase:string:text,source_text,input; language:string:target_language,language,to,lang | translate {0} {to|into} {1}; how do you say {0} in {1}; what is {0} in {1}; say {0} in {1}
turn_on switch_on enable | light lamp device | Switch on a device. | word:string:device,name,target,room | turn on the {0}; switch on the {0}; please turn the {0} on; enable the {0}
set change | light_color color | Set the color of a light. | word:string:room,lamp,light,name; color:string:color,colour,value | make the {0} {1}; set the {0} to {1}; change the color of the {0} to {1}; i want {1} light in the {0}
set change | temperature thermostat heating | Set the temperature of a room. | word:string:room,zone,place; int:integer:degrees,temperature,value,celsius | set the {0} to {1} degrees; make the {0} {1} degrees; heat the {0} to {1} degrees
play start queue | song music track | Play a song. | title:string:song,title,track,name | play {0}; play the song {0}; i want to hear {0}; put on {0}; start {0}
get find lookup track | order package parcel shipment | {Look up|Track} {an order|a parcel} by its number. | id:string:order_id,id,number,tracking_number,parcel | where is {my |}{order|parcel|package} {0}; track {0}; {status|state} of order {0}; look up {0}; has {0} been sent
get lookup find | customer user contact account | Look up a {customer|contact|user}. | name:string:name,customer,user,contact | {find|look up} {the |}{customer|contact|user} {0}; who is {0}; show me {the data of |}{0}; give me the {contact|account} of {0}
create open add file | ticket issue bug | Open {a ticket|an issue|a bug report}. | title:string:title,summary,subject,text | open {a ticket|an issue|a bug}: {0}; {create|file} {a ticket|an issue|a bug} called {0}; report the bug {0}
add put | item to_cart shopping_list | Put an item on the list. | word:string:item,product,name,thing; int:integer:count,quantity,amount,number | add {1} {0} to {my list|the list|the cart|my cart}; put {1} {0} on the list; i need {1} {0}; order {1} {0}
book reserve | table restaurant hotel room | Book {a table|a room}. | title:string:place,restaurant,hotel,name; int:integer:guests,people,seats,persons | {book|reserve} {a table|a room} for {1} {people |persons |guests |}at {0}; we are {1} people and want to go to {0}; a table at {0} for {1}
calculate compute eval | expression math formula | Calculate an expression. | int:integer:a,x,first,left; int:integer:b,y,second,right | multiply {0} {by|and|with} {1}; what is {0} times {1}; compute {0} times {1}; {0} multiplied by {1}
read open load view | file file_contents document | Read a file. | path:string:path,file_path,file,filename | {read|open|show} {me |}{the file |}{0}; what is in {0}; what does {0} {say|contain}; show me {the contents of |}{0}; look at {0}; cat {0}; please read {0}; summarize {0}; print {0}; i want to see {0}
Read View Open | - File | Reads a file from the local filesystem. | path:string:file_path,path,filePath | {read|open|show} {me |}{the file |}{0}; what is in {0}; what does {0} {say|contain}; look at {0}; have a look at {0}; explain {0}; read the file {0} and tell me what it says
write create save | file document | Write text to a file. | path:string:path,file_path,file,filename; phrase:string:content,text,contents,data | write {1} to {the file |}{0}; create {the file |}{0} with {the text |the content |}{1}; save {1} in {0}; put {1} into {0}; make a file {0} that contains {1}
Write - | - File | Writes a file to the local filesystem. | path:string:file_path,filePath,path; phrase:string:content,text | write {1} to {0}; create {0} with {the text |}{1}; create a file named {0} containing {1}
run execute exec | command shell_command bash shell terminal | {Run|Execute} a {shell|bash} command. | command:string:command,cmd,script,commandline | run {0}; execute {0}; run the command {0}; please run {0}; what does {0} print; {type|enter} {0}; start {0} in the shell
Bash Shell Terminal | - | Executes a bash command in a shell and returns its output. | command:string:command,cmd | run {0}; execute {0}; run the command {0}; please run {0}; what is the output of {0}; can you run {0}; use bash to run {0}
shell local_shell | - exec | Runs a shell command and returns its output. | command:array:command,argv | run {0}; execute {0}; run the command {0}; please run {0}; can you run {0}
grep search find | files code text_in_files | Search the files for a pattern. | pattern:string:pattern,regex,query,needle; path:string:path,dir,file,where | {search|grep} {for |}{0} in {1}; find {0} in {1}; does {1} contain {0}; look for {0} in {1}
Grep Search | - | Searches file contents for a regular expression. | pattern:string:pattern,query,regex | {search|grep|look} for {0}; find {all uses of |}{0} in the code; where is {0} used; where does {0} occur
list show | files directory dir folder | List the files of a {folder|directory}. | path:string:path,dir,directory,folder | list {the files in |}{0}; what files are in {0}; show the {folder|directory} {0}; ls {0}; which files does {0} have
Glob find_files list_files | - | Finds files by a pattern. | pattern:string:pattern,glob,query | {find|list} {all |}files {matching|that match|like} {0}; which files match {0}; glob {0}
delete remove erase | file entry record item | Delete {a file|an item|an entry}. | path:string:path,file,name,target | delete {0}; remove {0}; erase {0}; get rid of {0}; please delete {the file |}{0}
rename move | file item | Rename or move a file. | path:string:source,from,old,old_path; path:string:target,to,new,new_path | rename {0} to {1}; move {0} to {1}
fetch get download open | url page webpage site | Fetch a web page. | url:string:url,link,address,page | {fetch|open|get|download} {0}; what is on {0}; what does {0} say; summarize {0}; go to {0}; load the page {0}
get show list | time current_time clock date now | Get the current time. | | what time is it; what's the time; tell me the time; which day is it; current time please; do you have the time; what is the date today
get list show | status system_status health | Show the status of the system. | | is everything ok; how is the system doing; check the system; system state please; is the service healthy
roll flip throw | dice coin | Roll a dice. | | roll a dice; throw a dice; roll the dice for me; flip a coin; let chance decide
set toggle switch | notifications alerts sound dark_mode | Switch something on or off. | word:string:name,feature,option,what; bool:boolean:enabled,on,value,active | turn {0} {1}; switch {0} {1}; set {0} to {1}; please turn {0} {1}
count measure analyze | words text string_length | Analyze a text. | phrase:string:text,input,string,value | {count the words in|analyze|measure} {0}; how long is {the text |}{0}; analyze this: {0}
get find | recipe dish meal | Find a recipe. | phrase:string:ingredient,dish,query,name | {find|give me} a recipe {for|with} {0}; how do i cook {0}; what can i cook with {0}
get lookup define | definition word_meaning dictionary | Look up a word in the dictionary. | word:string:word,term,entry | {define|look up} {the word |}{0}; {what's|what is} the meaning of the word {0}; look {0} up in the dictionary
get | population country_info capital | Facts about a country or city. | city:string:country,name,place | how many people live in {0}; {what's|what is} the population of {0}; facts about {0}; tell me about the city {0}
transfer send pay | money payment funds | Transfer money. | amount:number:amount,sum,value; name:string:to,recipient,payee | {send|pay|transfer} {0} {euros |dollars |}to {1}; pay {1} {0}; give {1} {0} euros
call dial phone | contact number person | Call somebody. | name:string:contact,name,person,who | call {0}; phone {0}; {please |}dial {0}; i want to speak to {0}; ring {0}
navigate route drive | to directions_to | Directions to a place. | city:string:destination,place,target,to | {navigate|drive|take me|bring me} to {0}; {how far is|route to} {0}; show me the way to {0}; directions to {0}
"""

UNSEEN_DOMAINS = """
fetch_air | quality pollution | Report the air quality of a city. | city:string:municipality,spot | how clean is the air in {0}; air quality for {0} please; is the air bad in {0} today
water | plant flower_pot | Water a plant for some seconds. | word:string:plant,pot; int:integer:seconds,secs | water the {0} for {1} seconds; give the {0} water for {1} seconds
lock unlock | door gate | Lock a door. | word:string:door,gate_name | lock the {0}; please make sure that the {0} is locked
lend borrow | book volume | Lend a book to a reader. | title:string:book_title,volume; name:string:reader,member | lend {0} to {1}; {1} wants to borrow {0}
measure_dist | between points | Distance between two towns. | city:string:town_a,first_town; city:string:town_b,second_town | how far is it from {0} to {1}; distance between {0} and {1}
open_log stream_log | journal logfile | Show a log file. | path:string:logfile,log_path | show me the log {0}; what happened in {0}
hire | worker helper | Hire a person for some hours. | name:string:worker,person_name; int:integer:hours,n_hours | hire {0} for {1} hours; i need {0} for {1} hours
brew | coffee tea | Brew a drink. | word:string:drink,beverage; int:integer:cups,n_cups | brew {1} cups of {0}; i would like {1} cups of {0}
"""


class Domain:
    def __init__(self, line: str):
        verbs, nouns, self.description, parameters, sentences = (s.strip() for s in line_fields(line))
        self.verbs, self.nouns = verbs.split(), nouns.split()
        self.parameters = []
        for part in parameters.split(";"):
            if part.strip():
                kind, kind_type, names = part.strip().split(":")
                self.parameters.append((kind, kind_type, names.split(",")))
        self.sentences = [s.strip() for s in sentences.split(";")]


def line_fields(line: str) -> list[str]:
    """Splits at bars that are outside braces."""
    out, depth, current = [], 0, ""
    for c in line:
        depth += (c == "{") - (c == "}")
        if c == "|" and depth == 0:
            out.append(current)
            current = ""
        else:
            current += c
    return out + [current]


TRAIN = [Domain(l) for l in DOMAINS.strip().split("\n")]
UNSEEN = [Domain(l) for l in UNSEEN_DOMAINS.strip().split("\n")]
DESCRIPTIONS = {"city": "The city", "name": "Name of the person", "email": "The address", "path": "Path of the file", "command": "The command to run", "phrase": "The text",
                "title": "The title", "word": "The name", "id": "The number", "int": "How many", "amount": "The amount", "color": "The color", "language": "The language",
                "currency": "The currency code", "day": "The day", "time": "The time", "symbol": "The symbol", "url": "The address", "pattern": "The pattern", "bool": "On or off"}


def style(rng: random.Random, parts: list[str]) -> str:
    parts = [q for part in parts for q in part.split("_") if q and q != "-"]
    r = rng.random()
    if r < 0.6:
        return "_".join(parts)
    if r < 0.75:
        return parts[0] + "".join(q.capitalize() for q in parts[1:])
    if r < 0.85:
        return "".join(q[0].upper() + q[1:] for q in parts)
    return "-".join(parts)


MODIFIERS = [
    ("int", INTEGER, "minutes,duration,time,min,how_long,length", "for {} minutes;during {} minutes"),
    ("int", INTEGER, "seconds,secs,duration,time,n_seconds", "for {} seconds;during {} seconds"),
    ("int", INTEGER, "hours,duration,n_hours,time", "for {} hours"),
    ("int", INTEGER, "times,count,repeat,n,number", "{} times"),
    ("int", INTEGER, "floor,level,storey", "on floor {}"),
    ("name", STRING, "person,name,who,user,customer,owner,for_whom,recipient", "for {};together with {};with {}"),
    ("name", STRING, "by,worker,person,member,staff", "by {};through {}"),
    ("city", STRING, "city,place,location,town,where,site", "in {};near {}"),
    ("city", STRING, "origin,start,from_place,source", "from {}"),
    ("city", STRING, "target,to_place,destination,end", "to {}"),
    ("day", STRING, "day,date,when,on", "on {}"),
    ("time", STRING, "time,at,when,hour", "at {}"),
    ("color", STRING, "color,colour,shade", "in {};with color {}"),
    ("phrase", STRING, "note,text,comment,message,remark", "with the note {};saying {};with the text {}"),
    ("amount", NUMBER, "amount,price,value,sum,limit", "for {} euros;worth {}"),
    ("path", STRING, "file,path,output,log,target_file", "using {};with the file {}"),
    ("id", STRING, "id,number,code,reference", "with number {};under {}"),
    ("word", STRING, "tool,material,with,using", "with a {};using a {}"),
]


def composed(rng: random.Random) -> Domain:
    """A domain made of a verb, a thing and up to two modifiers; the description says what the sentences say."""
    verb = rng.choice(INFINITIVES) if rng.random() < 0.8 else any_word(rng)
    thing = rng.choice(NOUNS) if rng.random() < 0.75 else any_word(rng)
    d = object.__new__(Domain)
    base = [verb, thing] if rng.random() < 0.6 else [thing, verb] if rng.random() < 0.5 else [verb] if rng.random() < 0.5 else [verb + "_" + rng.choice(("a", "the", "my", "one")), thing]
    d.verbs, d.nouns = [base[0]], [base[1] if len(base) > 1 else "-"]
    modifiers = rng.sample(MODIFIERS, rng.choice((0, 1, 1, 2)))
    parameters, says = [], []
    if rng.random() < 0.65:
        kind = rng.choice(("word", "word", "name", "id", "path", "title"))
        names = {"word": f"name,{thing},which,what,item,object,{thing}_name", "name": f"name,{thing},which,{thing}_name", "id": f"id,number,{thing}_id,{thing}", "path": "path,file,source,input", "title": f"title,name,{thing}"}[kind]
        parameters.append((kind, STRING, names.split(",")))
        says.append(rng.choice((f"the {thing} {{0}}", f"{thing} {{0}}", "{0}", "the {0}" if kind == "word" else "{0}", f"the {thing} called {{0}}")))
    else:
        says.append(rng.choice((f"the {thing}", f"a {thing}", f"my {thing}", thing + "s")))
    for kind, kind_type, names, phrases in modifiers:
        says.append(rng.choice(phrases.split(";")).replace("{}", "{%d}" % len(parameters)))
        parameters.append((kind, kind_type, names.split(",")))
    extra = " ".join(re.sub(r"\{\d+\}", "some", x) for x in says[1:])
    d.description = rng.choice((f"{verb.capitalize()} a {thing}.", f"{verb.capitalize()} the {thing} {extra}".strip() + ".", f"{verb.capitalize()}s a {thing}", f"Lets you {verb} {thing}s.", f"Tool to {verb} a {thing}."))
    d.parameters = parameters
    frames = ("V", "V", "V", "please V", "can you V", "i want to V", "i need to V", "i would like to V", "make sure to V", "we should V", "somebody must V", "let's V", "it is time to V", "could somebody V", "time to V", "try to V", "go and V")
    d.sentences = []
    for _ in range(3):
        tail = says[1:]
        rng.shuffle(tail)
        d.sentences.append(rng.choice(frames).replace("V", " ".join([verb, says[0]] + tail)))
    return d


def rival(rng: random.Random, d: Domain) -> Domain:
    """Another composed domain that shares the verb or the thing with d."""
    e = composed(rng)
    own = d.verbs[0].split("_")[0] if rng.random() < 0.5 else d.nouns[0]
    if own != "-" and own.isalpha():
        if own == d.nouns[0]:
            e.nouns = [own]
        else:
            e.verbs = [own]
        e.description = f"{e.verbs[0].split('_')[0].capitalize()} a {e.nouns[0]}." if e.nouns[0] != "-" else e.description
    return e


def choose(rng: random.Random, n: int) -> list:
    """n tools with different names: known domains, composed ones with rivals, and wholly invented ones."""
    out: list[Tool] = []
    while len(out) < n:
        r = rng.random()
        if r < 0.3:
            new = [Tool(rng, rng.choice(TRAIN))]
        elif r < 0.8:
            d = composed(rng)
            new = [Tool(rng, d)]
            if rng.random() < 0.4 and len(out) + 1 < n:
                new.append(Tool(rng, rival(rng, d)))
        else:
            new = [Tool(rng)]
        for t in new:
            if t.name not in {u.name for u in out}:
                # A rival's sentences would fit its neighbour: it stands by and is never asked for.
                t.asked = t is new[0]
                out.append(t)
    rng.shuffle(out)
    return out[:n]


class Tool:
    """A schema with its domain, able to invent requests."""

    def __init__(self, rng: random.Random, domain: Domain | None = None, unseen: bool = False):
        self.asked = True
        if domain is None:
            kinds = [rng.choice(list(KINDS)) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3)))]
            domain_parameters = []
            for k in kinds:
                t = INTEGER if k == "int" else NUMBER if k == "amount" else STRING
                domain_parameters.append((k, t, [rng.choice((any_word(rng), rng.choice(NOUNS), rng.choice(NOUNS) + "_" + any_word(rng), rng.choice(ADJECTIVES) + "_" + rng.choice(NOUNS)))]))
            parts = rng.choice(([any_word(rng)], [any_word(rng), any_word(rng)], [any_word(rng), rng.choice(NOUNS)], [rng.choice(NOUNS), any_word(rng)], [rng.choice(NOUNS), rng.choice(NOUNS)], ["get", invented(rng)]))
            self.description = rng.choice((f"Does the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} thing.", f"{rng.choice(NOUNS).capitalize()} tool.", sentence(rng)))
            raw, self.sentences = domain_parameters, None
            self.name = style(rng, parts)
        else:
            parts = [rng.choice(domain.verbs), rng.choice(domain.nouns)]
            if rng.random() < 0.2:
                parts.append(rng.choice(("v2", "tool", "now", "api", invented(rng), rng.choice(NOUNS))))
            if rng.random() < 0.12:
                parts.insert(0, rng.choice((invented(rng), "mcp", "my", "app", "functions")))
            agent = "-" in parts
            parts = [q for q in parts if q != "-"] or [domain.verbs[0]]
            self.name = parts[0] if agent and rng.random() < 0.7 else style(rng, parts)
            self.description = expand(rng, domain.description)
            raw, self.sentences = domain.parameters, domain.sentences
        self.parameters, used = [], set()
        for kind, kind_type, names in raw:
            free = [n for n in names if n not in used] or [names[0] + "2"]
            name = rng.choice(free)
            if rng.random() < 0.25:
                name = rng.choice((name + "_" + rng.choice(("value", "name", "arg", any_word(rng))), any_word(rng), rng.choice(NOUNS), any_word(rng) + "_" + name))
            while name in used:
                name += "2"
            used.add(name)
            self.parameters.append((kind, kind_type, name))

    def schema(self, rng: random.Random, long: bool = False) -> dict:
        properties = {}
        for kind, kind_type, name in self.parameters:
            item = {"type": kind_type}
            if kind_type == ARRAY:
                item["items"] = {"type": "string"}
            if rng.random() < 0.6:
                item["description"] = DESCRIPTIONS.get(kind, "The value") + rng.choice((".", "", " to use", f", such as {sample(rng, kind)}"))
            properties[name] = item
        required = [name for _, _, name in self.parameters]
        if rng.random() < 0.25:
            extra = rng.choice((("limit", INTEGER), ("verbose", BOOLEAN), ("unit", STRING), ("timeout", NUMBER), ("offset", INTEGER), ("description", STRING), (invented(rng), STRING)))
            if extra[0] not in properties:
                properties[extra[0]] = {"type": extra[1], **({"description": "Optional " + rng.choice(NOUNS)} if rng.random() < 0.5 else {})}
        parameters = {"type": "object", "properties": properties}
        if required and rng.random() < 0.9:
            parameters["required"] = required
        if rng.random() < 0.15:
            parameters["additionalProperties"] = False
        description = self.description
        if long:
            description += "\n\n" + "\n".join(filler(rng, rng.randrange(100, 500)))
        out = {"name": self.name, "description": description, "parameters": parameters}
        if rng.random() < 0.1:
            out["strict"] = True
        return out

    def request(self, rng: random.Random) -> tuple[str, dict]:
        """What a user says, and the arguments it implies."""
        values = [sample(rng, kind) for kind, _, _ in self.parameters]
        arguments, said = {}, []
        for (kind, kind_type, name), value in zip(self.parameters, values):
            if kind == "bool":
                arguments[name] = value
                said.append("on" if value else "off")
            elif kind_type == ARRAY:
                arguments[name] = rng.choice((value.split(" "), value.split(" "))) 
                said.append(value)
            else:
                arguments[name] = value
                said.append(str(value))
        if self.sentences is None:
            text = self.generic(rng, said)
        else:
            text = expand(rng, rng.choice(self.sentences))
            if rng.random() < 0.08:
                text = self.generic(rng, said)
            if rng.random() < 0.3:
                text = rng.choice(("please ", "can you ", "could you ", "hey, ", "i'd like you to ", "ok, ", "now ")) + text
            if rng.random() < 0.6:
                text = text[0].upper() + text[1:]
            quote = rng.choice(("", "", "", '"', "'", "`"))
            for i, ((kind, _, _), s) in enumerate(zip(self.parameters, said)):
                q = quote if kind in ("phrase", "title", "command", "path", "pattern", "word") else ""
                text = text.replace("{%d}" % i, q + s + q)
            text += rng.choice(("", "", ".", "?", "!", " please", ", please.", " now"))
        return text, arguments

    def generic(self, rng: random.Random, said: list[str]) -> str:
        names = [name for _, _, name in self.parameters]
        if not names:
            return expand(rng, "{use|call|run|please use|invoke} {the tool |}" + self.name + "{.||, please|}")
        style_ = rng.randrange(3)
        pairs = [f"{n} {s}" if style_ == 0 else f"{n} set to {s}" if style_ == 1 else f"{n} = {s}" for n, s in zip(names, said)]
        return expand(rng, "{use|call|run|please use|please call|invoke|i want you to call} {the tool |}" + self.name + " with ") + rng.choice((" and ", ", ")).join(pairs) + rng.choice(("", ".", ""))


def sample(rng: random.Random, kind: str):
    return rng.random() < 0.5 if kind == "bool" else KINDS[kind](rng)


RESULT_KEYS = w("""temperature condition humidity status price count total name state result date time distance duration size id message owner level speed
city country version change number amount title type weight age color mode points""")


def result(rng: random.Random) -> tuple[str, str]:
    """A tool's result and the answer that reports it."""
    r = rng.random()
    if r < 0.4:
        keys = rng.sample(RESULT_KEYS, rng.randrange(1, 5))
        item = {}
        for k in keys:
            item[k] = rng.choice((rng.randrange(0, 500), rng.randrange(-20, 100), round(rng.uniform(0, 99), 1), rng.choice(ADJECTIVES), rng.choice(NOUNS), invented(rng), rng.choice(NAMES), phrase(rng)))
        import json

        said = ", ".join(f"{k} is {v}" for k, v in item.items())
        return json.dumps(item), f"The tool says: {said}."
    if r < 0.75:
        text = rng.choice((sentence, phrase, title, lambda g: str(sample(g, "amount")), lambda g: sample(g, "id"), lambda g: f"{g.randrange(1, 60)} {g.choice(NOUNS)}s", lambda g: f"{g.choice(NAMES)} {g.choice(VERBS)} the {g.choice(NOUNS)}", lambda g: g.choice(("ok", "done", "sent", "saved", "created", "success", "true")), path, command))(rng)
        return text, f"The result is: {text}" + ("" if text[-1] in ".!?" else ".")
    if r < 0.83:
        text = rng.choice((f"{path(rng)} not found", "permission denied", "timeout", f"no such {rng.choice(NOUNS)}", f"invalid {rng.choice(NOUNS)}", f"unknown {rng.choice(NOUNS)} {invented(rng)}", "connection refused"))
        return rng.choice(("Error: ", "error: ")) + text, f"The tool failed: {text}."
    if r < 0.9:
        items = [rng.choice((path(rng), rng.choice(NOUNS), invented(rng), rng.choice(NAMES))) for _ in range(rng.randrange(2, 5))]
        return "\n".join(items), "The result has these lines: " + ", ".join(items) + "."
    first = sentence(rng)
    rest = filler(rng, rng.randrange(100, 900))
    return first + "\n" + "\n".join(rest), "The result is long. It begins: " + first
