"""`python -m hiresfix.server.web`: bring the files of translations up to what is used (see `messages`)."""

from hiresfix.server.web.languages import ENGLISH, LANGUAGES
from hiresfix.server.web.message_catalogs import update

for language in LANGUAGES:
    if language is not ENGLISH:
        lacking = update(language)
        print(f"{language.name}: {lacking} messages lack a translation")
