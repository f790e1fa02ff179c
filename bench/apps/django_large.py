"""A Django project as many are: an ORM, the admin, forms, and two large libraries for the work.

`/` computes a little with all of them. It also gives the garbage collector work, as requests to
most Django projects do, because the collector decides how much memory workers share after a fork:

* A bound form and its fields refer to each other, so only the collector frees them.
* The last 500 results stay in a cache, as model instances. Objects that outlive a few requests make
  the collector examine all objects of the process from time to time.
"""

import datetime
import functools
import os
import time

import numpy
import pandas
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for a benchmark",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)

from django import forms  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse, HttpResponseBadRequest, JsonResponse  # noqa: E402
from django.template import engines  # noqa: E402
from django.urls import path  # noqa: E402

wsgi = get_wsgi_application()
asgi = get_asgi_application()

from django.contrib import admin  # noqa: E402
from django.db import models  # noqa: E402

# What an application keeps in memory from its start: 200,000 rows that requests look up.
PRICES = {f"item-{number}": number * 1.25 for number in range(200_000)}
# Long enough that other workers get requests meanwhile.
PAUSE_S = 0.005
PAGE = engines["django"].from_string(
    "{{ form.n.label }} {{ form.n.value }}\n"
    "{% for row in rows %}{{ row.age }}: {{ row.price }}\n{% endfor %}"
)


class Offer(models.Model):
    """A row of a result. No database has it."""

    age = models.CharField(max_length=40)
    price = models.FloatField()

    class Meta:
        app_label = "shop"


class ItemForm(forms.Form):
    n = forms.IntegerField(label="Item", min_value=0)
    note = forms.CharField(max_length=80, required=False)


@functools.lru_cache(maxsize=500)
def offers(number):
    frame = pandas.DataFrame({"price": [PRICES[f"item-{number}"]] * 8, "n": range(8)})
    return [
        Offer(age=str(datetime.timedelta(seconds=n)), price=float(numpy.mean([n, p])))
        for n, p in frame.values
    ]


def index(request):
    form = ItemForm(request.GET)
    if not form.is_valid():
        return HttpResponseBadRequest("which item?")
    rows = offers(form.cleaned_data["n"] % 200_000)
    return HttpResponse(PAGE.render({"form": form, "rows": rows}), content_type="text/plain")


def pid(request):
    if "pause" in request.GET:
        time.sleep(PAUSE_S)
    return HttpResponse(str(os.getpid()))


def items(request):
    return JsonResponse({"items": len(PRICES)})


urlpatterns = [
    path("", index),
    path("pid", pid),
    path("items", items),
    path("admin/", admin.site.urls),
]
